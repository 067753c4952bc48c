package dev.cabochon.core

import java.io.File
import java.io.FileNotFoundException
import java.util.concurrent.Executors
import kotlinx.coroutines.CompletableDeferred
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.first
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.runBlocking
import kotlinx.coroutines.withTimeout
import org.junit.After
import org.junit.Assert.assertEquals
import org.junit.Assert.assertFalse
import org.junit.Assert.assertNotNull
import org.junit.Assert.assertNull
import org.junit.Assert.assertTrue
import org.junit.Rule
import org.junit.Test
import org.junit.rules.TemporaryFolder

/** The screen's life without a screen: a microphone and an engine that do what a test says. */
class DemoSessionTest {
    @get:Rule
    val scratch = TemporaryFolder()

    private val main = Executors.newSingleThreadExecutor().asCoroutineDispatcher()
    private var microphoneFails: Throwable? = null
    private var engineFails: Throwable? = null
    private var seconds = 1
    private var opened = 0
    private var closed = 0
    private val logged = ArrayList<Throwable>()

    /** Completed by a test: the answer goes on then. */
    private val answers = CompletableDeferred<Unit>()

    private inner class FakeMicrophone(private val sampleRate: Int) : Microphone {
        private val stopped = CompletableDeferred<Unit>()

        override suspend fun record(): FloatArray {
            microphoneFails?.let { throw it }
            stopped.await()
            return FloatArray(seconds * sampleRate)
        }

        override fun stop() {
            stopped.complete(Unit)
        }
    }

    private inner class FakeTranslator : Translator {
        override fun translate(sound: Sound, source: String, target: String): Flow<TranslationUpdate> = flow {
            emit(TranslationUpdate("a", "a", "", Statistics(newTokens = 1), false))
            answers.await()
            emit(TranslationUpdate("a b", "a", "b in $target", Statistics(newTokens = 2), true))
        }

        override fun close() {
            closed++
        }
    }

    private val device = object : Device {
        override fun microphone(sampleRate: Int, longest: Int): Microphone = FakeMicrophone(sampleRate)

        override fun openTranslator(folder: File): Translator {
            engineFails?.let { throw it }
            opened++
            return FakeTranslator()
        }

        override fun usedMegabytes() = 42L

        override fun log(error: Throwable) {
            logged.add(error)
        }
    }

    private val folder: File by lazy { scratch.newFolder("model") }
    private val record: File by lazy { File(scratch.root, "unfinished") }

    private fun openAsset(path: String) = File(Golden.model.folder, path).takeIf { it.isFile }?.inputStream()
        ?: throw FileNotFoundException(path)

    private fun session() = runBlocking(main) { DemoSession(ModelInstaller(folder, UnfinishedDownload(record)), device, main) }

    private fun sessionWithModel() = session().also {
        it.onMain { install(::openAsset) }
        it.waitFor { state -> state.isModelReady && state.activity == Activity.IDLE }
    }

    private fun DemoSession.onMain(action: DemoSession.() -> Unit) = runBlocking(main) { action() }

    private fun DemoSession.waitFor(isReached: (ScreenState) -> Boolean): ScreenState = runBlocking {
        withTimeout(20_000) { state.first(isReached) }
    }

    private fun DemoSession.waitForIdle() = waitFor { it.activity == Activity.IDLE }

    @After
    fun stop() = main.close()

    @Test
    fun `without a model there is a sentence and no talking`() {
        val session = session()
        assertEquals("There is no model yet: choose one.", session.waitForIdle().status)
        session.onMain { talk() }
        assertEquals(Activity.IDLE, session.state.value.activity)
    }

    @Test
    fun `speech is recorded, translated piece by piece, and measured`() {
        val session = sessionWithModel()
        session.onMain { talk() }
        assertEquals(Activity.RECORDING, session.state.value.activity)
        session.onMain { release() }
        assertEquals("a", session.waitFor { it.transcript.isNotEmpty() }.transcript)
        // Turning the phone stops the activity, which releases the button: the answer goes on.
        session.onMain { release() }
        answers.complete(Unit)
        val last = session.waitForIdle()
        assertEquals("b in ${last.target}", last.translation)
        assertEquals(2, last.statistics!!.newTokens)
        assertEquals(42L, last.memoryMegabytes)
    }

    @Test
    fun `a button that is released at once ends its recording`() {
        val session = sessionWithModel()
        seconds = 0
        session.onMain {
            talk()
            release()
        }
        assertEquals("That was too short: hold the button while you speak.", session.waitForIdle().status)
        assertEquals(0, opened)
    }

    @Test
    fun `whatever is cancelled, however early, the next recording begins`() {
        val session = sessionWithModel()
        session.onMain {
            talk()
            cancel()
        }
        assertEquals("Cancelled.", session.waitForIdle().status)
        session.onMain { talk() }
        assertEquals(Activity.RECORDING, session.state.value.activity)
        session.onMain { release() }
        session.waitFor { it.transcript.isNotEmpty() }
        session.onMain { cancel() }
        assertEquals("Cancelled.", session.waitForIdle().status)
        session.onMain { talk() }
        assertEquals(Activity.RECORDING, session.state.value.activity)
        assertEquals("", session.state.value.transcript)
    }

    @Test
    fun `memory is given back only while nothing goes on, and the model is loaded again`() {
        val session = sessionWithModel()
        session.onMain { talk() }
        session.onMain { release() }
        session.waitFor { it.transcript.isNotEmpty() }
        session.onMain { unloadIfIdle() }
        assertEquals(0, closed)
        answers.complete(Unit)
        session.waitForIdle()
        session.onMain { unloadIfIdle() }
        assertEquals(1, closed)
        session.onMain { talk() }
        session.onMain { release() }
        session.waitFor { it.translation.isNotEmpty() }
        assertEquals(2, opened)
    }

    @Test
    fun `every failure is one sentence and ends nothing but itself`() {
        val session = sessionWithModel()
        val failures = mapOf(
            ModelException("the engine refuses: choose another model.") to "the engine refuses: choose another model.",
            UnsatisfiedLinkError("no libx.so") to "The engine's library does not run on this phone (no libx.so)",
            OutOfMemoryError() to "There is not enough memory for this model",
            java.io.IOException("read error") to "The model's files cannot be read (read error)",
            IllegalStateException("bad") to "The app failed (java.lang.IllegalStateException: bad)",
        )
        for ((error, sentence) in failures) {
            engineFails = error
            session.onMain { talk() }
            session.onMain { release() }
            assertTrue(sentence, session.waitForIdle().status.startsWith(sentence))
        }
        engineFails = null
        microphoneFails = ModelException("the microphone cannot be opened: close the app that uses it.")
        session.onMain { talk() }
        assertTrue(session.waitForIdle().status.startsWith("the microphone cannot be opened"))
        assertEquals(2, logged.size)
    }

    @Test
    fun `a wrong address is refused and the model stays`() {
        val session = sessionWithModel()
        session.onMain { download("http://example.org/model") }
        val state = session.waitForIdle()
        assertTrue(state.status, "is no https address" in state.status)
        assertTrue(state.isModelReady)
        assertNull(UnfinishedDownload(record).address)
    }

    @Test
    fun `a download that the process did not end is known at the next start, until it is cancelled`() {
        UnfinishedDownload(record).remember("https://127.0.0.1:1/model")
        val session = session()
        assertEquals("https://127.0.0.1:1/model", session.waitForIdle().unfinishedAddress)
        session.onMain { download(state.value.unfinishedAddress!!) }
        assertNull("it is taken up once", session.state.value.unfinishedAddress)
        val failed = session.waitForIdle()
        assertTrue(failed.status, "look at the address and the network" in failed.status)
        assertNotNull("the next start goes on", UnfinishedDownload(record).address)
        assertNull(failed.unfinishedAddress)
    }

    @Test
    fun `a folder that was chosen while the model is being opened is installed behind that`() {
        val session = runBlocking(main) {
            DemoSession(ModelInstaller(folder, UnfinishedDownload(record)), device, main).also { it.install(::openAsset) }
        }
        assertTrue(session.waitFor { it.isModelReady && it.activity == Activity.IDLE }.status.startsWith("Model "))
    }

    @Test
    fun `languages are never the same`() {
        val session = sessionWithModel()
        val (source, target) = session.state.value.run { source to target }
        session.onMain { chooseSource(target) }
        assertEquals(target to source, session.state.value.run { this.source to this.target })
        session.onMain { swapLanguages() }
        assertEquals(source to target, session.state.value.run { this.source to this.target })
        session.onMain { chooseTarget(source) }
        assertEquals(target to source, session.state.value.run { this.source to this.target })
        assertFalse(session.state.value.languages.isEmpty())
    }
}
