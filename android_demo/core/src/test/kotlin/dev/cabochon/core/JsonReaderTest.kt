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

    private fun table(region: RowRegion, rows: Int = 2) =
        EmbeddingTable(rows, 1, "int8", true, region, 1, RowRegion("manifest.json", 0, 4), "float32", null, 1.0)

    @Test
    fun `a table that its file has no room for is refused`() {
        val regions = listOf(RowRegion("manifest.json", Long.MAX_VALUE - 1, 1), RowRegion("manifest.json", 0, Long.MAX_VALUE))
        regions.forEach { assertRefused("too short") { EmbeddingRows(Golden.model.folder, table(it, rows = 1 shl 30)) } }
    }

    @Test
    fun `a list of files with impossible entries is refused`() {
        val hash = "0".repeat(64)
        fun index(vararg files: String) = """{"format": 1, "name": "", "package_sha256": "", "engine": "onnx", "files": [${
            files.joinToString()
        }]}"""
        fun file(path: String, size: Long = 1, sha256: String = hash) =
            """{"path": "$path", "size": $size, "sha256": "$sha256", "delivery": "push"}"""
        assertEquals(2, ModelIndex.read(index(file("a"), file("b")).reader()).files.size)
        assertRefused("twice") { ModelIndex.read(index(file("a"), file("A")).reader()) }
        assertRefused("needs itself") { ModelIndex.read(index(file("Assets.json")).reader()) }
        assertRefused("needs itself") { ModelIndex.read(index(file("a.part")).reader()) }
        assertRefused("impossible size") { ModelIndex.read(index(file("a", size = -1)).reader()) }
        assertRefused("impossible size") { ModelIndex.read(index(file("a", size = Long.MAX_VALUE)).reader()) }
        assertRefused("impossible size") { ModelIndex.read(index(file("a", sha256 = "abc")).reader()) }
        assertRefused("more than a megabyte") { ModelIndex.readText(ByteArray(3_000_000).inputStream()) }
    }

    @Test
    fun `a tokenizer cannot exhaust memory or stack`() {
        assertRefused("deeper") { Tokenizer.read(("{\"post_processor\": " + "[".repeat(100_000)).reader()) }
        listOf(-1, 1 shl 30).forEach {
            assertRefused("the token $it") { Tokenizer.read("""{"model": {"type": "BPE", "vocab": {"a": $it}}}""".reader()) }
        }
    }

    @Test
    fun `a model's files cannot leave its folder`() {
        listOf("../a", "/a", "a//b", "a/./b", "..\\a", "a\u0000", "", "a/..").forEach { path ->
            assertRefused("leaves the model's folder") { ModelFile(path, 1, "0".repeat(64), true) }
            assertRefused("leaves the model's folder") { Golden.model.file(path) }
            assertRefused("leaves the model's folder") { EmbeddingRows(Golden.model.folder, table(RowRegion(path, 0, 1))) }
        }
    }
}
