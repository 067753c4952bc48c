package dev.cabochon.core

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.MalformedURLException
import java.net.URI
import java.net.URL
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.async
import kotlinx.coroutines.currentCoroutineContext
import kotlinx.coroutines.delay
import kotlinx.coroutines.ensureActive
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.flow.onEach
import kotlinx.coroutines.flow.retryWhen
import kotlinx.coroutines.launch

/** How far a transfer is: the file that comes, and bytes of all files together. */
data class TransferProgress(val path: String, val bytes: Long, val size: Long) {
    val percent: Int get() = if (size > 0) (100 * bytes / size).toInt() else 100

    /** For a person. */
    override fun toString(): String = "$path: ${bytes / 1_000_000} of ${size / 1_000_000} MB, $percent %"
}

/** The folder on a server that holds assets.json and what it lists. */
class DownloadAddress internal constructor(private val base: String) {
    /** The address of a file below; its name may hold blanks or `#`. */
    fun of(path: String): URL = URL("$base${URI(null, null, "/$path", null).toASCIIString()}")

    override fun toString(): String = base

    companion object {
        /** ModelException for anything but https: models are checked by a list that comes the same way. */
        fun read(text: String): DownloadAddress {
            val base = text.trim().trimEnd('/')
            val url = try {
                URL(base)
            } catch (_: MalformedURLException) {
                null
            }
            val isUsable = url != null && url.protocol == "https" && url.host.isNotEmpty() && url.query == null && url.ref == null
            if (!isUsable) throw ModelException("\"$base\" is no https address: give that of a folder with ${ModelIndex.NAME}.")
            return DownloadAddress(base)
        }
    }
}

/**
 * Puts a model's files into a folder: from below an address, going on where it was interrupted, or from streams.
 *
 * A file gets its name when its SHA-256 is right, never before; one that is there already is read again, unless it is
 * known to be right.
 *
 * Args: trusted: files of the model that was there before, whose SHA-256 need not be compared again. pauses: milliseconds before each new try where a
 * connection breaks off and nothing came since the last.
 */
class ModelDownload(
    private val folder: File,
    private val files: List<ModelFile>,
    trusted: Set<ModelFile> = emptySet(),
    private val pauses: List<Long> = PAUSES,
) {
    private val size = files.sumOf { it.size }
    private val compared = HashSet(trusted)

    /** ModelException where the server or a file is not what was expected; the parts stay for the next try. */
    fun fromUrl(address: DownloadAddress): Flow<TransferProgress> {
        var failures = 0
        var furthest = 0L
        return transfer { file, before -> fetch(address.of(file.path), file, before) }
            .onEach {
                if (it.bytes > furthest) failures = 0
                furthest = maxOf(furthest, it.bytes)
            }
            .retryWhen { error, _ ->
                val pause = if (error is TransferInterruptedException) pauses.getOrNull(failures++) else null
                if (pause != null) delay(pause)
                pause != null
            }
            .flowOn(Dispatchers.IO)
    }

    /** Args: open: the content of a file; what an app's assets or a file picker give. */
    fun fromStreams(open: (ModelFile) -> InputStream): Flow<TransferProgress> = transfer { file, before ->
        part(file).delete()
        open(file).use { content -> append(file, before) { content.read(it) } }
    }.flowOn(Dispatchers.IO)

    private fun transfer(bring: suspend FlowCollector<TransferProgress>.(ModelFile, Long) -> Unit) = flow {
        requireSpace()
        var before = 0L
        for (file in files) {
            if (!isThere(file)) {
                bring(file, before)
                accept(file)
            }
            before += file.size
            emit(TransferProgress(file.path, before, size))
        }
    }

    private suspend fun isThere(file: ModelFile): Boolean {
        val target = File(folder, file.path)
        if (!target.isFile || target.length() != file.size) return false
        if (file !in compared && hash(target) == file.sha256) compared.add(file)
        return file in compared
    }

    private fun requireSpace() {
        val needed = files.filter { File(folder, it.path).length() != it.size }.sumOf { it.size - part(it).length() }
        val free = folder.usableSpace
        if (needed > free) {
            throw ModelException("the model takes ${needed / MEGA} MB more, but ${free / MEGA} MB are free: make room for it.")
        }
    }

    private suspend fun FlowCollector<TransferProgress>.fetch(address: URL, file: ModelFile, before: Long) {
        val part = part(file)
        if (part.length() > file.size) part.delete()
        if (part.length() == file.size && part.isFile) return // it was cut off while it was compared
        try {
            connect(address, part.length()) { connection ->
                if (connection.responseCode == HttpURLConnection.HTTP_OK) part.delete() // it knows no ranges, and begins again
                val content = connection.inputStream
                append(file, before) { buffer -> detached { content.read(buffer) } }
            }
            if (part.length() < file.size) throw IOException("${part.length()} of ${file.size} bytes came")
        } catch (error: IOException) {
            throw TransferInterruptedException("$address broke off (${error.message}): try again, it goes on where it stopped.")
        }
    }

    private suspend fun FlowCollector<TransferProgress>.append(file: ModelFile, before: Long, read: suspend (ByteArray) -> Int) {
        val part = part(file)
        part.parentFile?.mkdirs()
        FileOutputStream(part, true).use { output ->
            var written = part.length()
            val buffer = ByteArray(1 shl 18)
            while (true) {
                val count = read(buffer)
                if (count < 0) break
                output.write(buffer, 0, count)
                written += count
                if (written > file.size) break // the comparison says so
                emit(TransferProgress(file.path, before + written, size))
            }
            output.fd.sync()
        }
    }

    private suspend fun accept(file: ModelFile) {
        val part = part(file)
        if (part.length() != file.size || hash(part) != file.sha256) {
            part.delete()
            throw ModelException("${file.path} is another file than the model's (its SHA-256 differs): take it from elsewhere.")
        }
        val target = File(folder, file.path)
        if (!part.renameTo(target)) throw ModelException("$target cannot be written: free some space and try again.")
        compared.add(file)
    }

    /** Gigabytes take a while, and somebody may cancel. */
    private suspend fun hash(file: File): String {
        val context = currentCoroutineContext()
        return file.inputStream().use { content -> sha256(content) { context.ensureActive() } }
    }

    private fun part(file: ModelFile) = File(folder, file.path + ModelFile.PART_ENDING)

    companion object {
        private val PAUSES = listOf(1_000L, 2_000L, 5_000L, 10_000L, 30_000L, 60_000L, 60_000L)
        private const val MEGA = 1_000_000
        private const val TIMEOUT_MILLISECONDS = 30_000

        /** Its calls may be silent for as long as a timeout: nobody who cancels waits for that. */
        private val detached = CoroutineScope(SupervisorJob() + Dispatchers.IO)

        private suspend fun <T> detached(block: () -> T): T = detached.async { block() }.await()

        /** The text of assets.json below an address. IOException, ModelException: as [connect]. */
        internal suspend fun fetchIndex(address: DownloadAddress): String =
            connect(address.of(ModelIndex.NAME), 0) { connection -> detached { ModelIndex.readText(connection.inputStream) } }

        /**
         * Reads what lies behind an address, from a byte on.
         *
         * IOException where it fails; ModelException where the server has something else.
         */
        private suspend fun <T> connect(address: URL, start: Long, read: suspend (HttpURLConnection) -> T): T {
            val connection = address.openConnection() as HttpURLConnection
            connection.connectTimeout = TIMEOUT_MILLISECONDS
            connection.readTimeout = TIMEOUT_MILLISECONDS
            // Compressed on the way, bytes could not be counted.
            connection.setRequestProperty("Accept-Encoding", "identity")
            if (start > 0) connection.setRequestProperty("Range", "bytes=$start-")
            try {
                when (val status = detached { connection.responseCode }) {
                    HttpURLConnection.HTTP_OK -> Unit
                    HttpURLConnection.HTTP_PARTIAL -> requireStart(connection, address, start)
                    in BUSY -> throw IOException("the server answered $status")
                    else -> throw ModelException("$address answered $status, expected the file: look at the address.")
                }
                return read(connection)
            } finally {
                detached.launch { connection.disconnect() }
            }
        }

        private val BUSY = setOf(408, 429, 500, 502, 503, 504)

        private fun requireStart(connection: HttpURLConnection, address: URL, start: Long) {
            if (connection.getHeaderField("Content-Range")?.startsWith("bytes $start-") != true) {
                throw ModelException("$address sent another part than the one from byte $start on: take it from elsewhere.")
            }
        }
    }
}
