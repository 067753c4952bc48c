package dev.cabochon.core

import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Test

class TokenizerTest {
    private val tokenizer = Golden.model.readTokenizer()

    @Test
    fun `texts become the tokens that they become in Python`() {
        Golden.texts.forEach { assertArrayEquals(it.text, it.tokens, tokenizer.encode(it.text)) }
    }

    @Test
    fun `tokens become the texts that they become in Python`() {
        Golden.texts.forEach {
            assertEquals(it.decoded, tokenizer.decode(it.tokens))
            assertEquals(it.written, tokenizer.decodeWithControlTokens(it.tokens))
        }
    }

    @Test
    fun `streamed text is the whole text`() {
        Golden.texts.forEach { golden ->
            val stream = tokenizer.startStream()
            val text = golden.tokens.joinToString("") { stream.push(it) } + stream.finish()
            assertEquals(golden.decoded, text)
        }
    }

    @Test
    fun `bytes that are no character become one replacement each`() {
        val bytes = tokenizer.encode("🦊").filter { tokenizer.isByte(it) }.dropLast(1)
        assertEquals("\uFFFD".repeat(3), tokenizer.decode(bytes.toIntArray()))
    }

    @Test
    fun `tokens that the vocabulary lacks have no text and part no character`() {
        val bytes = tokenizer.encode("🦊").filter { tokenizer.isByte(it) }
        assertEquals("🦊", tokenizer.decode((bytes.take(2) + 1_000_000 + bytes.drop(2) + -1).toIntArray()))
    }

    @Test
    fun `a tokenizer of another kind is refused`() {
        assertRefused("WordPiece for type") { Tokenizer.read("""{"model": {"type": "WordPiece"}}""".reader()) }
        assertRefused("no merges") { Tokenizer.read("""{"model": {"type": "BPE", "vocab": {"a": 0}}}""".reader()) }
        assertRefused("for normalizer") { Tokenizer.read("""{"normalizer": {"type": "NFC"}}""".reader()) }
    }
}
