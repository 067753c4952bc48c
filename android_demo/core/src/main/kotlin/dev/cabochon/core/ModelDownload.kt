package dev.cabochon.core

import java.io.File
import java.io.FileOutputStream
import java.io.IOException
import java.io.InputStream
import java.net.HttpURLConnection
import java.net.URL
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/** How far a transfer is. */
data class TransferProgress(val path: String, val bytes: Long, val size: Long)

/**
 * Puts a model's files into a folder: from below a URL, going on where it was interrupted, or from streams.
 *
 * A file gets its name when its SHA-256 is right, never before.
 */
class ModelDownload(private val folder: File, private val files: List<ModelFile>) {
    /** ModelException where the server or the file is not what was expected; the parts stay for the next try. */
    fun fromUrl(base: String): Flow<TransferProgress> = flow {
        for (file in files) {
            if (File(folder, file.path).length() == file.size) continue
            val address = URL("${base.trimEnd('/')}/${file.path}")
            try {
                fetch(address, file)
            } catch (error: IOException) {
                throw ModelException("$address broke off (${error.message}): try again, it goes on where it stopped.")
            }
        }
    }.flowOn(Dispatchers.IO)

    /** Args: open: the content of a file; what an app's assets or a file picker give. */
    fun fromStreams(open: (ModelFile) -> InputStream): Flow<TransferProgress> = flow {
        for (file in files) {
            if (File(folder, file.path).length() == file.size) continue
            val part = part(file)
            part.delete()
            open(file).use { append(it, part, file) }
            accept(part, file)
        }
    }.flowOn(Dispatchers.IO)

    private suspend fun FlowCollector<TransferProgress>.fetch(address: URL, file: ModelFile) {
        val part = part(file)
        if (part.length() > file.size) part.delete()
        if (part.length() < file.size) {
            val connection = address.openConnection() as HttpURLConnection
            connection.connectTimeout = TIMEOUT_MILLISECONDS
            connection.readTimeout = TIMEOUT_MILLISECONDS
            if (part.length() > 0) connection.setRequestProperty("Range", "bytes=${part.length()}-")
            try {
                val status = connection.responseCode
                when {
                    status == HttpURLConnection.HTTP_OK -> part.delete() // it knows no ranges, and begins again
                    status == HttpURLConnection.HTTP_PARTIAL && startsAt(connection, part.length()) -> Unit
                    else -> throw ModelException("$address answered $status, expected the file: look at the address.")
                }
                connection.inputStream.use { append(it, part, file) }
            } finally {
                connection.disconnect()
            }
        }
        accept(part, file)
    }

    private fun startsAt(connection: HttpURLConnection, start: Long) =
        connection.getHeaderField("Content-Range")?.startsWith("bytes $start-") == true

    private suspend fun FlowCollector<TransferProgress>.append(content: InputStream, part: File, file: ModelFile) {
        part.parentFile?.mkdirs()
        FileOutputStream(part, true).use { output ->
            var written = part.length()
            val buffer = ByteArray(1 shl 18)
            while (true) {
                val count = content.read(buffer)
                if (count < 0) break
                output.write(buffer, 0, count)
                written += count
                if (written > file.size) break // the comparison says so
                emit(TransferProgress(file.path, written, file.size))
            }
            output.fd.sync()
        }
    }

    private fun accept(part: File, file: ModelFile) {
        if (part.length() < file.size) throw IOException("${part.length()} of ${file.size} bytes came")
        if (part.length() > file.size || part.inputStream().use { sha256(it) } != file.sha256) {
            part.delete()
            throw ModelException("${file.path} is another file than the model's (its SHA-256 differs): take it from elsewhere.")
        }
        val target = File(folder, file.path)
        if (!part.renameTo(target)) throw ModelException("$target cannot be written: free some space and try again.")
    }

    private fun part(file: ModelFile) = File(folder, "${file.path}.part")

    private companion object {
        const val TIMEOUT_MILLISECONDS = 30_000
    }
}
