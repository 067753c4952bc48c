package dev.cabochon.core

import com.sun.net.httpserver.HttpServer
import java.io.File
import java.net.InetAddress
import java.net.InetSocketAddress
import kotlinx.coroutines.flow.collect
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.toList
import kotlinx.coroutines.runBlocking
import org.junit.After
import org.junit.Assert.assertArrayEquals
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertTrue
import org.junit.Before
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

class ModelDownloadTest {
    @get:Rule
    val scratch = TemporaryFolder()

    private val content = ByteArray(1_000_000) { (it * 31 + it / 7).toByte() }
    private val file = ModelFile("decoder.onnx.data", content.size.toLong(), sha256(content.inputStream()), false)
    private val ranges = ArrayList<String?>()
    private var served = content
    private var knowsRanges = true

    /** Bytes of an answer behind which the server hangs up. */
    private var dropsAfter = Int.MAX_VALUE
    private lateinit var server: HttpServer

    @Before
    fun serve() {
        server = HttpServer.create(InetSocketAddress(InetAddress.getLoopbackAddress(), 0), 0)
        server.createContext("/model/") { exchange ->
            val range = exchange.requestHeaders.getFirst("Range")
            ranges.add(range)
            val start = if (knowsRanges && range != null) range.removePrefix("bytes=").removeSuffix("-").toInt() else 0
            if (start > 0) exchange.responseHeaders.add("Content-Range", "bytes $start-${served.size - 1}/${served.size}")
            val found = exchange.requestURI.path.endsWith(file.path)
            exchange.sendResponseHeaders(if (!found) 404 else if (start > 0) 206 else 200, (served.size - start).toLong())
            val sent = minOf(served.size - start, dropsAfter)
            exchange.responseBody.write(served, start, sent)
            exchange.responseBody.flush()
            exchange.close()
        }
        server.start()
    }

    @After
    fun stop() = server.stop(0)

    private val folder: File get() = scratch.root
    private fun address() = "http://127.0.0.1:${server.address.port}/model"
    private fun download(base: String = address()) = runBlocking { plainDownload().fromUrl(DownloadAddress(base)).collect() }
    private fun plainDownload(vararg pauses: Long) = ModelDownload(folder, listOf(file), pauses = pauses.toList())
    private fun part() = File(folder, "${file.path}.part")

    @Test
    fun `a file is fetched whole and checked`() {
        download()
        assertArrayEquals(content, File(folder, file.path).readBytes())
        assertFalse(part().exists())
        download() // it is there
        assertEquals(listOf<String?>(null), ranges)
    }

    @Test
    fun `an interrupted download goes on where it stopped`() {
        part().writeBytes(content.copyOf(300_000))
        download()
        assertEquals(listOf<String?>("bytes=300000-"), ranges)
        assertArrayEquals(content, File(folder, file.path).readBytes())
    }

    @Test
    fun `a download that is cancelled keeps what came`() = runBlocking {
        plainDownload().fromUrl(DownloadAddress(address())).first()
        // A fast server has sent all of it before anybody hears of the first piece.
        assertTrue(maxOf(part().length(), File(folder, file.path).length()) in 1..content.size)
        download()
        assertArrayEquals(content, File(folder, file.path).readBytes())
    }

    @Test
    fun `a server without ranges is asked for the whole file`() {
        knowsRanges = false
        part().writeBytes(ByteArray(1000))
        download()
        assertArrayEquals(content, File(folder, file.path).readBytes())
    }

    @Test
    fun `another file is refused and not kept`() {
        served = content.clone().also { it[5] = 77 }
        assertRefused("SHA-256 differs") { download() }
        served = content + 1
        assertRefused("SHA-256 differs") { download() }
        assertEquals(emptyList<String>(), folder.list()!!.toList())
    }

    @Test
    fun `a short answer and a wrong address are told in a sentence`() {
        served = content.copyOf(10)
        assertRefused("try again") { download() }
        val elsewhere = ModelDownload(folder, listOf(file.copy(path = "a/b")))
        assertRefused("answered 404") { runBlocking { elsewhere.fromUrl(DownloadAddress(address())).collect() } }
        assertRefused("broke off") { download("http://127.0.0.1:1") }
    }

    @Test
    fun `a connection that breaks off is tried again, and goes on`() = runBlocking {
        dropsAfter = 400_000
        plainDownload(0).fromUrl(DownloadAddress(address())).collect()
        assertArrayEquals(content, File(folder, file.path).readBytes())
        assertEquals(listOf(null, "bytes=400000-", "bytes=800000-"), ranges) // each try came further, so that none was the last
    }

    @Test
    fun `a connection that brings nothing is given up`() {
        dropsAfter = 0
        val error = runCatching { runBlocking { plainDownload(0, 0).fromUrl(DownloadAddress(address())).collect() } }
        assertTrue(error.exceptionOrNull() is TransferInterruptedException)
        assertEquals(3, ranges.size)
    }

    @Test
    fun `progress is that of all files together`() = runBlocking {
        val second = file.copy(path = "second.data")
        val progress = ModelDownload(folder, listOf(file, second)).fromStreams { content.inputStream() }.toList()
        assertEquals("second.data: 2 of 2 MB, 100 %", progress.last().toString())
        assertEquals(progress.map { it.bytes }.sorted(), progress.map { it.bytes })
        assertTrue(progress.all { it.size == 2L * content.size })
    }

    @Test
    fun `a file of the right length is compared before it is taken for the model's`() {
        File(folder, file.path).writeBytes(content.clone().also { it[7] = 9 })
        download()
        assertArrayEquals(content, File(folder, file.path).readBytes())
    }

    @Test
    fun `a model that the disk has no room for is refused before anything comes`() {
        val huge = file.copy(path = "huge.data", size = 1L shl 40)
        assertRefused("MB are free") { runBlocking { ModelDownload(folder, listOf(huge)).fromStreams { content.inputStream() }.collect() } }
        assertEquals(emptyList<String>(), folder.list()!!.toList())
    }

    @Test
    fun `only https is downloaded from`() {
        val words = "https address"
        listOf("", "http://a/b", "ftp://a/b", "file:///data/a", "https://", "https:///a", "https://a/b?c", "a.b/c").forEach {
            assertRefused(words) { DownloadAddress.read(it) }
        }
        assertEquals("https://a.b/c", DownloadAddress.read(" https://a.b/c// ").toString())
        assertEquals("https://a.b/c/d%20e/%23f%25.bin", DownloadAddress.read("https://a.b/c").of("d e/#f%.bin").toString())
    }

    @Test
    fun `files of an app's assets are checked as well`() = runBlocking {
        val install = ModelDownload(folder, listOf(file))
        install.fromStreams { content.inputStream() }.collect()
        assertArrayEquals(content, File(folder, file.path).readBytes())
    }
}
