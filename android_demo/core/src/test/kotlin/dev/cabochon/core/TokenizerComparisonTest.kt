package dev.cabochon.core

import java.io.File
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/**
 * Random texts of many scripts against Python's tokenizers, which a process beside this one asks: see
 * bridge/random_texts.py. `-Dcabochon.tokenizer=FILE` takes another tokenizer.json than the small model's.
 */
class TokenizerComparisonTest {
    private class Example(val text: String?, val tokens: IntArray, val decoded: String, val written: String)

    private val file = System.getProperty("cabochon.tokenizer")?.let(::File)
        ?: Golden.model.file(Golden.model.manifest.tokenizerFile)
    private val tokenizer = file.reader().use(Tokenizer::read)

    @Test
    fun `random texts and tokens become what they become in Python`() {
        val count = Integer.getInteger("cabochon.texts", 4000)
        val seed = Integer.getInteger("cabochon.seed", 1)
        val examples = draw(count, seed)
        assertEquals(count, examples.size)
        for (example in examples) {
            if (example.text != null) assertArrayEquals(example.text, example.tokens, tokenizer.encode(example.text))
            val shown = "tokens ${example.tokens.toList()}"
            assertEquals(shown, example.decoded, tokenizer.decode(example.tokens))
            assertEquals(shown, example.written, tokenizer.decodeWithControlTokens(example.tokens))
            val stream = tokenizer.startStream()
            assertEquals(shown, example.decoded, example.tokens.joinToString("") { stream.push(it) } + stream.finish())
        }
        val bytes = examples.flatMap { it.tokens.filter(tokenizer::isByte) }.distinct().size
        assertTrue("$bytes of 256 bytes were drawn: draw more", bytes > 200)
        println("$count texts and ${examples.sumOf { it.tokens.size }} tokens are Python's, seed $seed")
    }

    private fun draw(count: Int, seed: Int): List<Example> {
        val words = listOf(System.getProperty("cabochon.python"), System.getProperty("cabochon.textbridge"), file.path)
        val process = ProcessBuilder(words + listOf("$count", "$seed")).redirectError(ProcessBuilder.Redirect.INHERIT).start()
        process.outputStream.close()
        val lines = process.inputStream.bufferedReader().use { it.readLines() }
        assertEquals("random_texts.py failed: look at what it printed", 0, process.waitFor())
        return lines.map { line ->
            val json = JsonObject.read(line.reader(), "a random text")
            Example(json.textOrNull("text"), json.integers("tokens").toIntArray(), json.text("decoded"), json.text("written"))
        }
    }
}
