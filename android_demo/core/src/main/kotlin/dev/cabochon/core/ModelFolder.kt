package dev.cabochon.core

import java.io.File
import java.io.InputStream
import java.io.Reader
import java.security.MessageDigest

/** One file of a model. */
data class ModelFile(val path: String, val size: Long, val sha256: String, val isAsset: Boolean) {
    init {
        val safe = path.split('/').none { it.isEmpty() || it == "." || it == ".." } && '\\' !in path
        if (!safe) throw ModelException("assets.json names the path $path, which leaves the model's folder: write it again.")
    }
}

/** assets.json: which files a model has, and what they are. */
data class ModelIndex(val name: String, val packageSha256: String, val engine: String, val files: List<ModelFile>) {
    val size: Long get() = files.sumOf { it.size }

    companion object {
        const val NAME = "assets.json"
        const val FORMAT = 1

        fun read(source: Reader): ModelIndex {
            val json = JsonObject.read(source, NAME)
            val format = json.int("format")
            if (format != FORMAT) throw ModelException("$NAME has format $format, expected $FORMAT: write the assets again.")
            val files = json.children("files").map {
                ModelFile(it.text("path"), it.long("size"), it.text("sha256"), it.text("delivery") == "asset")
            }
            val index = ModelIndex(json.text("name"), json.text("package_sha256"), json.text("engine"), files)
            json.requireNoOther()
            return index
        }
    }
}

/** A folder with all files of a model. */
class ModelFolder(val folder: File) {
    val index: ModelIndex = read(ModelIndex.NAME, ModelIndex::read)
    val manifest: Manifest by lazy { read("manifest.json", Manifest::read) }
    val prompts: PromptTexts by lazy { read("prompts.json", PromptTexts::read) }

    fun readTokenizer(): Tokenizer = read(manifest.tokenizerFile, Tokenizer::read)

    fun readLogMel(): LogMel = LogMel(manifest.audio.logMel, file("mel_filters.bin").readBytes())

    fun file(path: String): File = File(folder, path).also {
        if (!it.isFile) throw ModelException("$path is missing in ${folder.name}: copy or download the model again.")
    }

    /** Files that are not there, or have another size. */
    fun missing(): List<ModelFile> = missing(folder, index)

    private fun <T> read(path: String, reader: (Reader) -> T): T = file(path).reader().use(reader)

    companion object {
        fun missing(folder: File, index: ModelIndex): List<ModelFile> =
            index.files.filter { File(folder, it.path).length() != it.size }
    }
}

/** Hexadecimal SHA-256 of all that is left of a stream; [report] is told how many bytes were read. */
fun sha256(content: InputStream, report: (Long) -> Unit = {}): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val buffer = ByteArray(1 shl 20)
    while (true) {
        val count = content.read(buffer)
        if (count < 0) break
        digest.update(buffer, 0, count)
        report(count.toLong())
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}
