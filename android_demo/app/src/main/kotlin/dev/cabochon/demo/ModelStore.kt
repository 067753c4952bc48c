package dev.cabochon.demo

import android.content.Context
import android.net.Uri
import android.provider.DocumentsContract
import dev.cabochon.core.ModelIndex
import java.io.File
import java.io.FileNotFoundException
import java.io.InputStream

/** Where models come from and go to on a phone: the app's folder, what the APK brings, a folder that a person chose. */
class ModelStore(private val context: Context) {
    /** Where `adb push` puts files, too; without external storage, the app's own. */
    val folder: File by lazy { (context.getExternalFilesDir(null) ?: context.filesDir).resolve("model").apply { mkdirs() } }

    /** Whether the APK brings a model, or its small files. */
    val hasAssets: Boolean by lazy { context.assets.list("model").orEmpty().contains(ModelIndex.NAME) }

    /** A file that the APK brings. */
    fun openAsset(path: String): InputStream = context.assets.open("model/$path")

    /** Opens files of a folder by their names, once it has listed them: not on the main thread. */
    fun treeOpener(tree: Uri): (String) -> InputStream {
        val documents by lazy { list(tree) }
        return { path ->
            val document = documents[path] ?: throw FileNotFoundException("$path is not in that folder")
            context.contentResolver.openInputStream(document) ?: throw FileNotFoundException("$path cannot be opened")
        }
    }

    private fun list(tree: Uri): Map<String, Uri> {
        val parent = DocumentsContract.getTreeDocumentId(tree)
        val children = DocumentsContract.buildChildDocumentsUriUsingTree(tree, parent)
        val columns = arrayOf(DocumentsContract.Document.COLUMN_DOCUMENT_ID, DocumentsContract.Document.COLUMN_DISPLAY_NAME)
        val found = HashMap<String, Uri>()
        context.contentResolver.query(children, columns, null, null, null)?.use { cursor ->
            while (cursor.moveToNext()) {
                val name = cursor.getString(1) ?: continue
                found[name] = DocumentsContract.buildDocumentUriUsingTree(tree, cursor.getString(0))
            }
        }
        return found
    }
}
