package dev.cabochon.core

import java.io.File

/** Prints what a tokenizer.json costs: seconds to load it, memory that it holds, and how fast it splits a text. */
object TokenizerCost {
    @JvmStatic
    fun main(words: Array<String>) {
        val file = File(words[0])
        val before = usedBytes()
        var started = System.nanoTime()
        val tokenizer = file.reader().use(Tokenizer::read)
        val seconds = (System.nanoTime() - started) / 1e9
        val held = usedBytes() - before
        val text = "Where is the train station? Wo ist der Bahnhof, bitte? 駅はどこですか。 ".repeat(200)
        repeat(20) { tokenizer.encode(text) }
        started = System.nanoTime()
        val tokens = tokenizer.encode(text)
        val perToken = (System.nanoTime() - started) / 1e3 / tokens.size
        println("%s: loaded in %.2f s, holds %.1f MB, splits a text at %.2f µs a token".format(file.name, seconds, held / 1e6, perToken))
    }

    private fun usedBytes(): Long {
        repeat(3) { System.gc() }
        return Runtime.getRuntime().run { totalMemory() - freeMemory() }
    }
}
