package dev.cabochon.demo

import android.content.Context
import android.net.Uri
import android.provider.DocumentsContract
import dev.cabochon.core.ModelDownload
import dev.cabochon.core.ModelException
import dev.cabochon.core.ModelFile
import dev.cabochon.core.ModelFolder
import dev.cabochon.core.ModelIndex
import dev.cabochon.core.TransferProgress
import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.net.URL
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.emitAll
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/** The model's files in the app's folder, and the ways they get there: assets, adb, download, file picker. */
class ModelStore(private val context: Context) {
    /** Where `adb push` puts files, too; without external storage, the app's own. */
    val folder: File get() = (context.getExternalFilesDir(null) ?: context.filesDir).resolve("model").apply { mkdirs() }

    /** Whether the APK brings a model, or its small files. */
    val hasAssets: Boolean get() = context.assets.list("model").orEmpty().contains(ModelIndex.NAME)

    /** The model, where all of its files are there; null where none was ever chosen. */
    fun open(): ModelFolder? {
        if (!File(folder, ModelIndex.NAME).isFile) return null
        val model = ModelFolder(folder)
        val missing = model.missing().firstOrNull() ?: return model
        throw ModelException("${missing.path} of the model is missing: push, download or choose it.")
    }

    /** Copies what the APK brings; files that it does not bring are to be pushed. */
    fun installFromApp(): Flow<TransferProgress> =
        install { path -> context.assets.open("model/$path") }

    /** Fetches from below an address; goes on where an earlier try stopped. */
    fun download(address: String): Flow<TransferProgress> = flow {
        val base = address.trimEnd('/')
        if (!base.startsWith("https://")) throw ModelException("$base is no https address: give that of a folder with ${ModelIndex.NAME}.")
        val text = try {
            URL("$base/${ModelIndex.NAME}").openStream().use { it.reader().readText() }
        } catch (error: IOException) {
            throw ModelException("$base/${ModelIndex.NAME} cannot be read (${error.message}): look at the address.")
        }
        val index = ModelIndex.read(text.reader())
        prepare(index)
        emitAll(ModelDownload(folder, index.files).fromUrl(base))
        File(folder, ModelIndex.NAME).writeText(text)
    }.flowOn(Dispatchers.IO)

    /** Copies from a folder that a person chose. */
    fun installFromTree(tree: Uri): Flow<TransferProgress> {
        val documents = list(tree)
        return install { path ->
            val document = documents[path] ?: throw FileNotFoundException("$path is not in that folder")
            context.contentResolver.openInputStream(document) ?: throw FileNotFoundException("$path cannot be opened")
        }
    }

    private fun install(open: (String) -> InputStream): Flow<TransferProgress> = flow {
        try {
            val text = open(ModelIndex.NAME).use { it.reader().readText() }
            val index = ModelIndex.read(text.reader())
            prepare(index)
            val (there, elsewhere) = index.files.partition { isThere(open, it) }
            emitAll(ModelDownload(folder, there).fromStreams { open(it.path) })
            File(folder, ModelIndex.NAME).writeText(text)
            val missing = elsewhere.firstOrNull { File(folder, it.path).length() != it.size } ?: return@flow
            throw ModelException("${missing.path} comes apart from these files: push it with push.sh, or download it.")
        } catch (error: IOException) {
            throw ModelException("the model cannot be copied (${error.message}): choose a folder with ${ModelIndex.NAME}.")
        }
    }.flowOn(Dispatchers.IO)

    private fun isThere(open: (String) -> InputStream, file: ModelFile): Boolean = try {
        open(file.path).close()
        true
    } catch (_: FileNotFoundException) {
        false
    }

    /** Files of another model would be taken for this one's where their sizes are equal. */
    private fun prepare(index: ModelIndex) {
        val known = File(folder, ModelIndex.NAME).takeIf { it.isFile } ?: return
        val earlier = try {
            known.reader().use { ModelIndex.read(it) }
        } catch (_: ModelException) {
            null
        }
        known.delete()
        val hashes = index.files.associate { it.path to it.sha256 }
        earlier?.files?.filter { hashes[it.path] != it.sha256 }?.forEach { File(folder, it.path).delete() }
    }

    private fun list(tree: Uri): Map<String, Uri> {
        val parent = DocumentsContract.getTreeDocumentId(tree)
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, parent)
        val columns = arrayOf(DocumentsContract.Document.COLUMN_DOCUMENT_ID, DocumentsContract.Document.COLUMN_DISPLAY_NAME)
        val found = HashMap<String, Uri>()
        context.contentResolver.query(children, columns, null, null, null)?.use { cursor ->
            while (cursor.moveToNext()) {
                found[cursor.getString(1)] = DocumentsContract.buildDocumentUriUsingTree(tree, cursor.getString(0))
            }
        }
        return found
    }
}
