package dev.cabochon.core

import org.junit.Assert.assertEquals
import org.junit.Test

class JsonReaderTest {
    private fun read(text: String): Any? = JsonReader(text.reader(), "a file").run { readValue().also { requireEnd() } }

    @Test
    fun `every kind of value is read`() {
        val expected = mapOf("a" to listOf(1L, -2.5, 1e3, true, false, null), "b\n\"é🦊" to emptyMap<String, Any?>())
        assertEquals(expected, read(""" {"a": [1, -2.5, 1e3, true, false, null], "b\n\"\u00e9\ud83e\udd8a": {}} """))
    }

    /** The reader takes 65 536 letters at a time. */
    @Test
    fun `texts are read wherever they lie in a file`() {
        for (blanks in 65_525..65_540) {
            val text = " ".repeat(blanks) + "[\"ab\", \"c\\nd\", \"\\u00e9🦊\", \"\"]"
            assertEquals(listOf("ab", "c\nd", "é🦊", ""), read(text))
        }
        assertRefused("its end too early") { read(" ".repeat(65_535) + "\"") }
    }

    @Test
    fun `what is no JSON is refused in a sentence`() {
        listOf("", "{", "[1,]", "{\"a\" 1}", "01", "1.", "nul", "\"\\x\"", "\"a", "[1] 2", "{\"a\":1,\"a\":2}", "\"\n\"")
            .forEach { text -> assertRefused("a file is no readable JSON") { read(text) } }
        assertRefused("deeper") { read("[".repeat(100)) }
    }

    @Test
    fun `a manifest of another format or with an unknown key is refused`() {
        assertRefused("format 3") { Manifest.read("""{"format_version": 3}""".reader()) }
        val text = Golden.model.file("manifest.json").readText()
        assertRefused("unknown key rotation") {
            Manifest.read(text.replace("\"vocabulary_size\"", "\"rotation\": 1, \"vocabulary_size\"").reader())
        }
        assertRefused("lacks hidden_size") { Manifest.read(text.replace("\"hidden_size\"", "\"hidden\"").reader()) }
    }

    @Test
    fun `a model's files cannot leave its folder`() {
        listOf("../a", "/a", "a//b", "a/./b", "..\\a").forEach { path ->
            assertRefused("leaves the model's folder") { ModelFile(path, 1, "", true) }
        }
    }
}
