package dev.cabochon.core

import org.junit.Assert.assertEquals
import org.junit.Assert.assertThrows
import org.junit.Test

class OpenedPartsTest {
    private val closed = ArrayList<String>()

    @Test
    fun `parts are closed once, the last one first, and at once where one fails`() {
        val parts = OpenedParts()
        parts.open { AutoCloseable { closed.add("one") } }
        assertEquals("no part", parts.open { "no part" })
        parts.open { AutoCloseable { closed.add("two") } }
        assertThrows(IllegalStateException::class.java) { parts.open { error("the third cannot be opened") } }
        assertEquals(listOf("two", "one"), closed)
        parts.close()
        assertEquals(2, closed.size)
    }

    /** An engine that knows the encoder and refuses the decoder, as where memory is short. */
    @Test
    fun `a model that cannot be loaded whole leaves nothing open`() {
        var opened = 0
        val engine = object : Engine {
            override val name = "onnx"

            override fun open(path: String): Session {
                if (opened++ > 0) throw ModelException("there is no more memory: close other apps.")
                return object : Session {
                    override fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) = Unit

                    override fun close() {
                        closed.add("encoder")
                    }
                }
            }

            override fun allocate(type: TensorType, vararg shape: Int): Tensor = throw AssertionError()

            override fun close() {
                closed.add("engine")
            }
        }
        assertRefused("no more memory") { GraphTranslator(Golden.model, engine) }
        assertEquals(listOf("encoder", "engine"), closed)
    }
}
