package dev.cabochon.core

import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.emitAll
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/** The one model of the app's folder, and how another takes its place: its assets.json comes last. */
class ModelInstaller(val folder: File, private val unfinished: UnfinishedDownload) {
    /** The model, where all of its files are there; null where none was ever chosen, or one did not come whole. */
    fun open(): ModelFolder? {
        if (!File(folder, ModelIndex.NAME).isFile) return null
        val model = ModelFolder(folder)
        val missing = model.missing().firstOrNull() ?: return model
        throw ModelException("${missing.path} of the model is missing: push, download or choose it.")
    }

    /** The address of a download that did not end, so that the next start of the app goes on with it. */
    val unfinishedAddress: String? get() = unfinished.address

    /** Nobody wants the rest of a download; its parts stay for another try. */
    fun forgetDownload() = unfinished.forget()

    /** Fetches from below an address; goes on where an earlier try stopped. */
    fun download(address: DownloadAddress): Flow<TransferProgress> = flow {
        unfinished.remember(address.toString())
        try {
            val text = fetchIndex(address)
            val index = ModelIndex.read(text.reader())
            emitAll(ModelDownload(folder, index.files, makeRoom(index)).fromUrl(address))
            replaceText(File(folder, ModelIndex.NAME), text)
            unfinished.forget()
        } catch (error: TransferInterruptedException) {
            throw error
        } catch (error: ModelException) {
            unfinished.forget() // the next try would end in the same way
            throw error
        }
    }.flowOn(Dispatchers.IO)

    /**
     * Copies from where somebody else has the files.
     *
     * Args: open: a file by its path; FileNotFoundException where it is not there, which is fine for those that are pushed.
     */
    fun install(open: (String) -> InputStream): Flow<TransferProgress> = flow {
        unfinished.forget()
        try {
            val text = open(ModelIndex.NAME).use(ModelIndex::readText)
            val index = ModelIndex.read(text.reader())
            val (there, elsewhere) = index.files.partition { isThere(open, it) }
            val trusted = makeRoom(index)
            emitAll(ModelDownload(folder, there, trusted).fromStreams { open(it.path) })
            val missing = elsewhere.firstOrNull { File(folder, it.path).length() != it.size }
            if (missing == null) {
                // Pushed ones: they are compared, and none is copied.
                emitAll(ModelDownload(folder, elsewhere, trusted).fromStreams {
                    throw ModelException("${it.path} is another file than this model's: push it again.")
                })
            }
            replaceText(File(folder, ModelIndex.NAME), text)
            if (missing != null) {
                throw ModelException("${missing.path} comes apart from these files: push it with push.sh, or download it.")
            }
        } catch (error: IOException) {
            throw ModelException("the model cannot be copied (${error.message}): choose a folder with ${ModelIndex.NAME}, or free some space.")
        }
    }.flowOn(Dispatchers.IO)

    private suspend fun fetchIndex(address: DownloadAddress): String = try {
        ModelDownload.fetchIndex(address)
    } catch (error: IOException) {
        throw TransferInterruptedException(
            "$address/${ModelIndex.NAME} cannot be read (${error.message ?: error}): look at the address and the network.",
        )
    }

    private fun isThere(open: (String) -> InputStream, file: ModelFile): Boolean = try {
        open(file.path).close()
        true
    } catch (_: FileNotFoundException) {
        false
    }

    /** Deletes what the new model has not, and its own list; returns the files that both have. */
    private fun makeRoom(index: ModelIndex): Set<ModelFile> {
        val known = File(folder, ModelIndex.NAME).takeIf { it.isFile } ?: return emptySet()
        val earlier = try {
            known.reader().use(ModelIndex::read).files
        } catch (_: ModelException) {
            emptyList()
        }
        known.delete()
        val hashes = index.files.associate { it.path to it.sha256 }
        val (kept, gone) = earlier.partition { hashes[it.path] == it.sha256 }
        gone.forEach { File(folder, it.path).delete() }
        val same = kept.map { it.path }.toSet()
        return index.files.filter { it.path in same }.toSet()
    }
}

/** A line in a file that outlives the process: from where a model was being downloaded. */
class UnfinishedDownload(private val file: File) {
    val address: String? get() = if (file.isFile) file.readText().trim().ifEmpty { null } else null

    fun remember(address: String) = replaceText(file, "$address\n")

    fun forget() {
        file.delete()
    }
}
