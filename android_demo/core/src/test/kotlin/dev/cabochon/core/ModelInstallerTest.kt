package dev.cabochon.core

import com.sun.net.httpserver.HttpServer
import java.io.File
import java.io.FileNotFoundException
import java.io.InputStream
import java.net.InetAddress
import java.net.InetSocketAddress
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.launch
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class ModelInstallerTest {
    @get:Rule
    val scratch = TemporaryFolder()

    private val served = HashMap<String, ByteArray>()
    private val asked = ArrayList<String>()

    /** Where it is set, the server says nothing, and this is completed when it is asked. */
    private var silent: CompletableDeferred<Unit>? = null
    private val server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0).apply {
        createContext("/") { exchange ->
            val name = exchange.requestURI.path.removePrefix("/model/")
            asked.add(name)
            val content = served[name]
            exchange.sendResponseHeaders(if (content == null) 404 else 200, content?.size?.toLong() ?: -1)
            if (silent?.complete(Unit) == null && content != null) exchange.responseBody.use { it.write(content) }
        }
        start()
    }

    @After
    fun stop() = server.stop(0)

    private val folder: File by lazy { scratch.newFolder("model") }
    private val record: File by lazy { File(scratch.root, "unfinished") }
    private val installer by lazy { ModelInstaller(folder, UnfinishedDownload(record)) }
    private val address by lazy { DownloadAddress("http://127.0.0.1:${server.address.port}/model") }

    private fun index(vararg files: Pair<String, ByteArray>) = files.joinToString(
        prefix = """{"format": 1, "name": "small", "package_sha256": "", "engine": "onnx", "files": [""", postfix = "]}",
    ) { (path, content) ->
        """{"path": "$path", "size": ${content.size}, "sha256": "${sha256(content.inputStream())}", "delivery": "push"}"""
    }.toByteArray()

    private fun serve(vararg files: Pair<String, ByteArray>) {
        served.putAll(files)
        served[ModelIndex.NAME] = index(*files)
    }

    private fun download() = runBlocking { installer.download(address).collect() }

    private fun open(path: String): InputStream = served[path]?.inputStream() ?: throw FileNotFoundException(path)

    private val one = "a.bin" to ByteArray(10) { 1 }
    private val other = "a.bin" to ByteArray(10) { 2 }

    @Test
    fun `a model is there when all of it is, and its list comes last`() {
        assertNull(installer.open())
        serve(one, "sub folder/b.bin" to ByteArray(5))
        download()
        assertEquals("small", installer.open()!!.index.name)
        assertEquals(listOf(ModelIndex.NAME, "a.bin", "sub folder/b.bin"), asked)
        assertNull(installer.unfinishedAddress)
    }

    @Test
    fun `a download that breaks off is remembered, for another process too`() {
        server.stop(0)
        assertRefused("cannot be read") { download() }
        assertEquals(address.toString(), ModelInstaller(folder, UnfinishedDownload(record)).unfinishedAddress)
        installer.forgetDownload()
        assertNull(installer.unfinishedAddress)
    }

    @Test
    fun `a download that can never end is not remembered`() {
        assertRefused("answered 404") { download() }
        assertNull(installer.unfinishedAddress)
        serve(one)
        served["a.bin"] = ByteArray(10) { 3 }
        assertRefused("SHA-256 differs") { download() }
        assertNull(installer.unfinishedAddress)
        assertNull(installer.open())
    }

    @Test
    fun `a wrong address leaves the model that is there`() {
        serve(one)
        download()
        served.clear()
        assertRefused("answered 404") { download() }
        assertEquals("small", installer.open()!!.index.name)
    }

    @Test
    fun `another model's file of the same size does not stay, also behind an installation that failed`() {
        serve(one)
        download()
        val failed = index(one, "b.bin" to ByteArray(5))
        served[ModelIndex.NAME] = failed
        assertRefused("answered 404") { download() } // its list is gone now, and a.bin is there
        serve(other)
        runBlocking { installer.install(::open).collect() }
        assertEquals(2, File(folder, "a.bin").readBytes()[0].toInt())
    }

    @Test
    fun `files that are pushed are asked for, and compared when they are there`() {
        val large = "large.bin" to ByteArray(20) { 7 }
        served[ModelIndex.NAME] = index(one, large)
        served += one
        assertRefused("large.bin comes apart") { runBlocking { installer.install(::open).collect() } }
        assertRefused("large.bin of the model is missing") { installer.open() }
        File(folder, "large.bin").writeBytes(large.second)
        assertEquals("small", installer.open()!!.index.name)
        File(folder, ModelIndex.NAME).delete()
        File(folder, "large.bin").writeBytes(ByteArray(20))
        assertRefused("large.bin is another file") { runBlocking { installer.install(::open).collect() } }
    }

    @Test
    fun `what is no model is refused in a sentence`() {
        assertRefused("cannot be copied") { runBlocking { installer.install(::open).collect() } }
        served[ModelIndex.NAME] = "<html>".toByteArray()
        assertRefused("no readable JSON") { download() }
        served[ModelIndex.NAME] = index("../a" to ByteArray(1))
        assertRefused("leaves the model's folder") { download() }
        assertTrue(folder.list()!!.isEmpty())
        assertFalse(File(scratch.root, "a").exists())
    }

    /** The limit is far below the half minute that a silent connection is given. */
    @Test
    fun `cancelling ends a download whose server is silent`() = runBlocking {
        serve(one)
        val isAsked = CompletableDeferred<Unit>().also { silent = it }
        val download = launch(Dispatchers.Default) { installer.download(address).first() }
        isAsked.await()
        withTimeout(10_000) {
            download.cancel()
            download.join()
        }
        assertEquals(address.toString(), installer.unfinishedAddress)
    }
}
