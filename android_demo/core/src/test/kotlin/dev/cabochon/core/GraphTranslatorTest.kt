package dev.cabochon.core

import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.AfterClass
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

/** The whole way, with onnxruntime in a Python process. */
class GraphTranslatorTest {
    @Test
    fun `prompts are those of Python`() = Golden.spoken.forEach {
        val audioTokens = it.prompt.count { token -> token == Golden.model.manifest.audio.softToken }
        assertArrayEquals(it.prompt, translator.prompt(it.source, it.target, audioTokens))
    }

    /** The log-mels differ by 1e-5 or so, which integer kernels round to other integers now and then. */
    @Test
    fun `audio embeddings of Python's frames are those of Python`() = Golden.spoken.forEach {
        assertClose(it.sound, it.matrix("audio_embeddings"), translator.encode(it.matrix("log_mel")), 1e-5f)
    }

    @Test
    fun `logits behind a prompt are those of Python`() = Golden.spoken.forEach {
        assertClose(it.sound, it.matrix("logits"), translator.prefill(it.prompt, it.matrix("audio_embeddings")), 1e-4f)
    }

    @Test
    fun `rows of both embedding tables are those of Python, bit by bit`() {
        val engine = Golden.model.manifest.engines.getValue("onnx")
        val spoken = Golden.spoken[0]
        val tables = mapOf("inputs_embeds" to engine.tokenEmbeddings, "per_layer_inputs" to engine.perLayerEmbeddings!!)
        for ((name, table) in tables) {
            val rows = EmbeddingRows(Golden.model.folder, table)
            val expected = spoken.matrix(name)
            spoken.prompt.forEachIndexed { position, token ->
                if (token == Golden.model.manifest.audio.softToken) return@forEachIndexed
                val row = java.nio.FloatBuffer.allocate(table.columns).also { rows.lookUp(token, it) }
                val place = position * table.columns
                assertClose("$name of $token", expected.copyOfRange(place, place + table.columns), row.array(), 0f)
            }
        }
    }

    @Test
    fun `a sound is translated as in Python`() = runBlocking {
        for (golden in Golden.spoken) {
            val updates = translator.translate(golden.readSound(), golden.source, golden.target).toList()
            val last = updates.last()
            assertEquals(golden.text, last.text)
            assertEquals(golden.transcript, last.transcript)
            assertEquals(golden.translation, last.translation)
            assertEquals(golden.answer.size, last.statistics.newTokens)
            assertTrue(last.isFinished && updates.dropLast(1).none { it.isFinished })
            assertTrue("text comes piece by piece", updates.zipWithNext().all { (one, two) -> two.text.startsWith(one.text) })
            println("${golden.sound}: ${last.transcript} → ${last.translation}")
        }
    }

    @Test
    fun `an answer that was cancelled does not disturb the next`() = runBlocking {
        val golden = Golden.spoken[0]
        translator.translate(golden.readSound(), golden.source, golden.target).first { it.text.isNotEmpty() }
        val next = Golden.spoken[1]
        assertEquals(next.text, translator.translate(next.readSound(), next.source, next.target).toList().last().text)
    }

    @Test
    fun `sounds that the model cannot take are refused in a sentence`() {
        assertRefused("expected 16000") { translator.frames(Sound(FloatArray(8000), 8000)) }
        assertRefused("too short") { translator.frames(Sound(FloatArray(10), 16000)) }
        assertRefused("the model takes 30 s") { translator.frames(Sound(FloatArray(31 * 16000), 16000)) }
        assertRefused("two different languages") { translator.prompt("German", "German", 3) }
    }

    companion object {
        private val translator by lazy { GraphTranslator(Golden.model, Golden.openBridge()) }

        @JvmStatic
        @AfterClass
        fun closeTranslator() = translator.close()
    }
}
