package dev.cabochon.core

import java.io.File
import java.io.FileOutputStream
import java.io.InputStream
import java.io.Reader
import java.security.MessageDigest

/** One file of a model. */
data class ModelFile(val path: String, val size: Long, val sha256: String, val isAsset: Boolean) {
    init {
        requireInside(path, ModelIndex.NAME)
        val isReserved = path.equals(ModelIndex.NAME, ignoreCase = true) || path.endsWith(PART_ENDING)
        if (isReserved) throw ModelException("${ModelIndex.NAME} names the path $path, which the app needs itself: write it again.")
        if (size !in 0..LARGEST || !SHA256.matches(sha256)) {
            throw ModelException("${ModelIndex.NAME} has an impossible size or SHA-256 for $path: write it again.")
        }
    }

    companion object {
        /** Of a file that is not whole yet. */
        const val PART_ENDING = ".part"
        private const val LARGEST = 1L shl 40
        private val SHA256 = Regex("[0-9a-f]{64}")
    }
}

/** assets.json: which files a model has, and what they are. */
data class ModelIndex(val name: String, val packageSha256: String, val engine: String, val files: List<ModelFile>) {
    val size: Long get() = files.sumOf { it.size }

    companion object {
        const val NAME = "assets.json"
        const val FORMAT = 1
        private const val MOST_BYTES = 1 shl 20

        fun read(source: Reader): ModelIndex {
            val json = JsonObject.read(source, NAME)
            val format = json.int("format")
            if (format != FORMAT) throw ModelException("$NAME has format $format, expected $FORMAT: write the assets again.")
            val files = json.children("files").map {
                ModelFile(it.text("path"), it.long("size"), it.text("sha256"), it.text("delivery") == "asset")
            }
            // A phone's shared storage knows no upper and lower case.
            val twice = files.groupBy { it.path.lowercase() }.values.firstOrNull { it.size > 1 }
            if (twice != null) throw ModelException("$NAME names ${twice[0].path} twice: write it again.")
            val index = ModelIndex(json.text("name"), json.text("package_sha256"), json.text("engine"), files)
            json.requireNoOther()
            return index
        }

        /** Its text from a stream, which may be anybody's and of any length. */
        fun readText(source: InputStream): String {
            val bytes = ByteArray(MOST_BYTES + 1)
            var length = 0
            while (length < bytes.size) {
                val count = source.read(bytes, length, bytes.size - length)
                if (count < 0) return String(bytes, 0, length, Charsets.UTF_8)
                length += count
            }
            throw ModelException("$NAME has more than a megabyte, expected a list of files: look at the address.")
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

    fun file(path: String): File = File(folder, requireInside(path, "the model")).also {
        if (!it.isFile) throw ModelException("$path is missing in ${folder.name}: copy or download the model again.")
    }

    /** Files that are not there, or have another size. */
    fun missing(): List<ModelFile> = index.files.filter { File(folder, it.path).length() != it.size }

    private fun <T> read(path: String, reader: (Reader) -> T): T = file(path).reader().use(reader)
}

/** The path again; ModelException where [owner] names one that is not plainly below the model's folder. */
internal fun requireInside(path: String, owner: String): String {
    val isInside = path.split('/').none { it.isEmpty() || it == "." || it == ".." } && path.none { it == '\\' || it < ' ' }
    if (!isInside) throw ModelException("$owner names the path $path, which leaves the model's folder: write it again.")
    return path
}

/** Replaces a small file, whole or not at all. */
internal fun replaceText(file: File, text: String) {
    val beside = File(file.path + ModelFile.PART_ENDING)
    FileOutputStream(beside).use {
        it.write(text.toByteArray(Charsets.UTF_8))
        it.fd.sync()
    }
    if (!beside.renameTo(file)) throw ModelException("$file cannot be written: free some space and try again.")
}

/** Hexadecimal SHA-256 of all that is left of a stream; [report] is told how many bytes were read. */
fun sha256(content: InputStream, report: (Int) -> Unit = {}): String {
    val digest = MessageDigest.getInstance("SHA-256")
    val buffer = ByteArray(1 shl 20)
    while (true) {
        val count = content.read(buffer)
        if (count < 0) break
        digest.update(buffer, 0, count)
        report(count)
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}
