package dev.cabochon.core

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.math.abs
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue

/** What Python computed, by `cabochon-convert android`. */
object Golden {
    class Text(val text: String, val tokens: IntArray, val decoded: String, val written: String)

    class Spoken(
        val sound: String,
        val source: String,
        val target: String,
        val prompt: IntArray,
        val answer: IntArray,
        val text: String,
        val transcript: String,
        val translation: String,
        private val matrices: JsonObject,
    ) {
        fun matrix(name: String): FloatArray {
            val content = ByteBuffer.wrap(resource(matrices.child(name).text("file"))).order(ByteOrder.LITTLE_ENDIAN)
            return FloatArray(content.remaining() / 4) { content.float }
        }

        fun readSound(): Sound = Wav.read(resource(sound), sound)
    }

    /** The model that the golden vectors are of. */
    val model: ModelFolder by lazy {
        ModelFolder(File(System.getProperty("cabochon.model"))).also {
            assertEquals("golden vectors are of another package: write them again", it.index.packageSha256, packageSha256)
        }
    }

    private val json = JsonObject.read(String(resource("golden.json")).reader(), "golden.json")
    private val packageSha256 = json.text("package_sha256")

    val texts: List<Text> = json.children("texts").map {
        Text(it.text("text"), it.integers("tokens").toIntArray(), it.text("decoded"), it.text("written"))
    }

    val spoken: List<Spoken> = json.children("spoken").map {
        Spoken(
            it.text("sound"), it.text("source"), it.text("target"), it.integers("prompt").toIntArray(),
            it.integers("answer").toIntArray(), it.text("text"), it.text("transcript"), it.text("translation"),
            it.child("matrices"),
        )
    }

    fun openBridge() = BridgeEngine(System.getProperty("cabochon.python"), System.getProperty("cabochon.bridge"))

    private fun resource(name: String): ByteArray =
        checkNotNull(Golden::class.java.getResourceAsStream("/golden/$name")) {
            "golden/$name is missing: run make test-android, or cabochon-convert android"
        }.use { it.readBytes() }
}

fun assertClose(what: String, expected: FloatArray, found: FloatArray, tolerance: Float) {
    assertEquals("$what: number of values", expected.size, found.size)
    val worst = expected.indices.maxOf { abs(expected[it] - found[it]) }
    assertTrue("$what: differs by $worst, allowed are $tolerance", worst <= tolerance)
}

fun assertRefused(words: String, action: () -> Unit) {
    try {
        action()
    } catch (error: ModelException) {
        assertTrue("\"${error.message}\" does not say \"$words\"", words in error.message!!)
        return
    }
    throw AssertionError("nothing was refused, expected: $words")
}
