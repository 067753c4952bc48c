package dev.cabochon.core

import java.io.File
import java.io.IOException
import java.io.InputStream
import java.util.ServiceConfigurationError
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.CoroutineDispatcher
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.CoroutineStart
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.Job
import kotlinx.coroutines.NonCancellable
import kotlinx.coroutines.SupervisorJob
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.flow.StateFlow
import kotlinx.coroutines.flow.emitAll
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.launch
import kotlinx.coroutines.withContext

/** Records one utterance. */
interface Microphone {
    /** Samples in [-1, 1], until [stop] or the longest that it was made for. ModelException where none can be had. */
    suspend fun record(): FloatArray

    /** Ends [record], also one that has not begun yet. */
    fun stop()
}

/** What a phone has and a JVM has not. */
interface Device {
    /** Args: longest: in samples. */
    fun microphone(sampleRate: Int, longest: Int): Microphone

    /** Loads a model with an engine of this app; ModelException where none runs it. */
    fun openTranslator(folder: File): Translator

    /** Of the whole process. */
    fun usedMegabytes(): Long

    /** For whoever looks into a failure that nobody expected. */
    fun log(error: Throwable)
}

/** Model, microphone and answer; lives as long as the process. Called on one thread, which [main] is. */
class DemoSession(private val installer: ModelInstaller, private val device: Device, main: CoroutineDispatcher) {
    private val scope = CoroutineScope(SupervisorJob() + main)
    private val mutableState = MutableStateFlow(ScreenState(unfinishedAddress = installer.unfinishedAddress))
    private var model: ModelFolder? = null

    @Volatile
    private var translator: Translator? = null
    private var work: Job? = null
    private var microphone: Microphone? = null

    val state: StateFlow<ScreenState> get() = mutableState

    private val opening: Job? = start(Activity.PREPARING) { openModel() }

    fun chooseSource(language: String) = choose(language, mutableState.value.target)

    fun chooseTarget(language: String) = choose(mutableState.value.source, language)

    fun swapLanguages() = choose(mutableState.value.target, mutableState.value.source)

    /** Args: open: a file of a model by its path; FileNotFoundException where there is none. */
    fun install(open: (String) -> InputStream) = install(Activity.PREPARING) { installer.install(open) }

    /** Fetches a model from below an https address. */
    fun download(address: String) = install(Activity.DOWNLOADING) { installer.download(DownloadAddress.read(address)) }

    /** Records until [release], then translates. */
    fun talk() {
        val audio = model?.manifest?.audio ?: return
        if (mutableState.value.activity != Activity.IDLE) return
        val sampleRate = audio.logMel.sampleRate
        // Made here, so that no release is too early for it.
        val recorder = device.microphone(sampleRate, audio.maxSamples).also { microphone = it }
        start(Activity.RECORDING) {
            val (source, target) = mutableState.value.source to mutableState.value.target
            change { it.copy(transcript = "", translation = "", statistics = null, memoryMegabytes = null) }
            val waveform = try {
                recorder.record()
            } finally {
                microphone = null
            }
            val sound = Sound(waveform, sampleRate)
            if (sound.seconds < SHORTEST_SECONDS) throw ModelException("That was too short: hold the button while you speak.")
            change { it.copy(activity = Activity.TRANSLATING) }
            loadTranslator().translate(sound, source, target).collect { update ->
                change {
                    it.copy(transcript = update.transcript, translation = update.translation, statistics = update.statistics)
                }
            }
            val used = withContext(Dispatchers.IO) { device.usedMegabytes() }
            change { it.copy(memoryMegabytes = used) }
        }
    }

    fun release() {
        microphone?.stop()
    }

    /** Ends what is going on; a download that was cancelled does not go on by itself. */
    fun cancel() {
        if (mutableState.value.activity == Activity.DOWNLOADING) installer.forgetDownload()
        microphone?.stop()
        work?.cancel()
    }

    /** Ends a download that the next start of the app goes on with. */
    fun pauseDownload() {
        if (mutableState.value.activity == Activity.DOWNLOADING) work?.cancel()
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

    private fun install(activity: Activity, transfer: () -> Flow<TransferProgress>) {
        // A folder that was chosen while the system had ended the process comes back before the model is open.
        if (opening?.isActive == true) {
            opening.invokeOnCompletion { scope.launch { install(activity, transfer) } }
            return
        }
        start(activity) {
            change { it.copy(unfinishedAddress = null) }
            unload()
            try {
                flow { emitAll(transfer()) }.collect { progress ->
                    change { it.copy(status = progress.toString(), progress = progress) }
                }
                openModel()
            } catch (error: Throwable) {
                withContext(NonCancellable) { openWhatIsLeft() }
                throw error
            }
        }
    }

    /** Behind an installation that failed: the model that was there before, where it is still whole. */
    private suspend fun openWhatIsLeft() {
        try {
            openModel()
        } catch (_: ModelException) {
            model = null
            change { it.copy(isModelReady = false) }
        }
    }

    private suspend fun openModel() {
        model = null
        val opened = withContext(Dispatchers.IO) { installer.open()?.also { it.manifest; it.prompts } }
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
        // Kept within, so that a model that was loaded while somebody cancelled is not lost.
        return withContext(Dispatchers.IO) { device.openTranslator(installer.folder).also { translator = it } }
    }

    private fun start(activity: Activity, action: suspend () -> Unit): Job? {
        if (mutableState.value.activity != Activity.IDLE) return null
        change { it.copy(activity = activity, status = "") }
        // At once, so that none is cancelled before it can say that it has ended.
        return scope.launch(start = CoroutineStart.UNDISPATCHED) {
            val end = try {
                action()
                null
            } catch (cancelled: CancellationException) {
                change { it.copy(activity = Activity.IDLE, status = "Cancelled.", progress = null) }
                throw cancelled
            } catch (error: ModelException) {
                error.message
            } catch (error: IOException) {
                "The model's files cannot be read (${error.message}): choose it again."
            } catch (error: OutOfMemoryError) {
                unload()
                "There is not enough memory for this model: close other apps, or take a smaller one."
            } catch (error: LinkageError) {
                device.log(error)
                "The engine's library does not run on this phone (${error.message}): build the app for its processor."
            } catch (error: ServiceConfigurationError) {
                device.log(error)
                "The engine cannot be started (${error.message}): build the app again."
            } catch (error: RuntimeException) {
                device.log(error)
                "The app failed ($error): try again, or choose another model."
            }
            change { it.copy(activity = Activity.IDLE, status = end ?: it.status, progress = null) }
        }.also { work = it }
    }

    private fun change(edit: (ScreenState) -> ScreenState) {
        mutableState.value = edit(mutableState.value)
    }

    private companion object {
        const val SHORTEST_SECONDS = 0.3
    }
}
