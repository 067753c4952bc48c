package dev.cabochon.demo

import android.net.Uri
import android.os.Handler
import android.os.Looper
import dev.cabochon.core.ModelException
import dev.cabochon.core.ModelFolder
import dev.cabochon.core.Sound
import dev.cabochon.core.Statistics
import dev.cabochon.core.TransferProgress
import dev.cabochon.core.Translator
import dev.cabochon.core.TranslatorFactory
import java.io.File
import java.util.ServiceLoader
import java.util.concurrent.Executor
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.asCoroutineDispatcher
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

enum class Activity { IDLE, PREPARING, RECORDING, TRANSLATING }

/** All that the screen shows. */
data class ScreenState(
    val activity: Activity = Activity.IDLE,
    /** One sentence. */
    val status: String = "",
    val languages: List<String> = emptyList(),
    val source: String = "",
    val target: String = "",
    val transcript: String = "",
    val translation: String = "",
    val statistics: Statistics? = null,
    val isModelReady: Boolean = false,
)

/** The main thread, which the screen belongs to; the same as kotlinx-coroutines-android's, without that library. */
val mainDispatcher = Executor { Handler(Looper.getMainLooper()).post(it) }.asCoroutineDispatcher()

/** Model, microphone and answer; lives as long as the process. Called on the main thread only. */
class DemoSession(private val store: ModelStore, private val cache: File) {
    private val scope = CoroutineScope(SupervisorJob() + mainDispatcher)
    private val mutableState = MutableStateFlow(ScreenState())
    private var model: ModelFolder? = null

    @Volatile
    private var translator: Translator? = null
    private var work: Job? = null
    private var recorder: Recorder? = null

    val state: StateFlow<ScreenState> get() = mutableState

    val hasAssets: Boolean get() = store.hasAssets

    init {
        start(Activity.PREPARING) { openModel() }
    }

    fun chooseSource(language: String) = choose(language, mutableState.value.target)

    fun chooseTarget(language: String) = choose(mutableState.value.source, language)

    fun swapLanguages() = choose(mutableState.value.target, mutableState.value.source)

    fun installFromApp() = install(store.installFromApp())

    fun download(address: String) = install(store.download(address))

    fun installFromTree(tree: Uri) = install(store.installFromTree(tree))

    /** Records until [release], then translates. */
    fun talk() {
        val audio = model?.manifest?.audio ?: return
        start(Activity.RECORDING) {
            val (source, target) = mutableState.value.source to mutableState.value.target
            change { it.copy(transcript = "", translation = "", statistics = null) }
            val microphone = Recorder(audio.logMel.sampleRate, audio.maxSamples).also { recorder = it }
            val waveform = try {
                microphone.record()
            } finally {
                recorder = null
            }
            change { it.copy(activity = Activity.TRANSLATING) }
            loadTranslator().translate(Sound(waveform, audio.logMel.sampleRate), source, target).collect { update ->
                change {
                    it.copy(
                        transcript = update.transcript, translation = update.translation, statistics = update.statistics,
                    )
                }
            }
        }
    }

    fun release() {
        recorder?.stop()
    }

    fun cancel() {
        recorder?.stop()
        work?.cancel()
    }

    fun say(sentence: String) = change { it.copy(status = sentence) }

    /** Gives the model's memory back; the next answer loads it again. */
    fun unloadIfIdle() {
        if (mutableState.value.activity == Activity.IDLE) unload()
    }

    private fun unload() {
        translator?.close()
        translator = null
    }

    private fun choose(source: String, target: String) = change {
        // Both the same: the other one becomes what this one was.
        if (source == target && it.source == source) it.copy(source = it.target, target = target)
        else if (source == target) it.copy(source = source, target = it.source)
        else it.copy(source = source, target = target)
    }

    private fun install(transfer: Flow<TransferProgress>) = start(Activity.PREPARING) {
        unload()
        transfer.collect { progress ->
            val percent = 100 * progress.bytes / maxOf(progress.size, 1)
            change { it.copy(status = "${progress.path}: $percent %") }
        }
        openModel()
    }

    private suspend fun openModel() {
        val opened = withContext(Dispatchers.IO) { store.open()?.also { it.manifest; it.prompts } }
        model = opened
        change { state ->
            if (opened == null) return@change state.copy(isModelReady = false, status = "There is no model yet: choose one.")
            val languages = opened.prompts.languages
            val known = state.source in languages && state.target in languages
            state.copy(
                isModelReady = true,
                status = "Model ${opened.index.name}, ${opened.index.size / 1_000_000} MB.",
                languages = languages,
                source = if (known) state.source else languages[0],
                target = if (known) state.target else languages[1],
            )
        }
    }

    private suspend fun loadTranslator(): Translator {
        translator?.let { return it }
        val folder = store.folder
        return withContext(Dispatchers.IO) {
            val factories = ServiceLoader.load(TranslatorFactory::class.java, javaClass.classLoader).toList()
            val factory = factories.firstOrNull { it.canOpen(folder) } ?: throw ModelException(
                if (factories.isEmpty()) "This app was built without an engine: build it with Gradle."
                else "${factories.joinToString { it.name }} cannot run this model: choose another one.",
            )
            // Here, so that a model that was loaded while somebody cancelled is not lost.
            factory.open(folder, cache).also { translator = it }
        }
    }

    private fun start(activity: Activity, action: suspend () -> Unit) {
        if (mutableState.value.activity != Activity.IDLE) return
        change { it.copy(activity = activity, status = "") }
        work = scope.launch {
            try {
                action()
            } catch (cancelled: CancellationException) {
                change { it.copy(status = "Cancelled.") }
                throw cancelled
            } catch (error: ModelException) {
                change { it.copy(status = error.message ?: "") }
            } catch (error: OutOfMemoryError) {
                unload()
                change { it.copy(status = "There is not enough memory for this model: close other apps, or take a smaller one.") }
            } finally {
                change { it.copy(activity = Activity.IDLE) }
            }
        }
    }

    private fun change(edit: (ScreenState) -> ScreenState) {
        mutableState.value = edit(mutableState.value)
    }
}
