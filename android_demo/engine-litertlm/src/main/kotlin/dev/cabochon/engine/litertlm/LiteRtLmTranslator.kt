package dev.cabochon.engine.litertlm

import com.google.ai.edge.litertlm.Backend
import com.google.ai.edge.litertlm.Content
import com.google.ai.edge.litertlm.Contents
import com.google.ai.edge.litertlm.ConversationConfig
import com.google.ai.edge.litertlm.Engine
import com.google.ai.edge.litertlm.EngineConfig
import com.google.ai.edge.litertlm.SamplerConfig
import dev.cabochon.core.ModelException
import dev.cabochon.core.ModelFolder
import dev.cabochon.core.Sound
import dev.cabochon.core.Statistics
import dev.cabochon.core.TranslationUpdate
import dev.cabochon.core.Translator
import dev.cabochon.core.TranslatorFactory
import dev.cabochon.core.Wav
import dev.cabochon.core.splitTranslation
import java.io.File
import kotlinx.coroutines.CancellationException
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.catch
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn

/** Google's LiteRT-LM with a `.litertlm` bundle: front end, encoder and decode loop are its own. */
class LiteRtLmTranslator(model: ModelFolder, bundle: File, cache: File) : Translator {
    private val prompts = model.manifest.prompts
    private val audio = model.manifest.audio
    private val engine = Engine(
        EngineConfig(
            modelPath = bundle.path,
            backend = Backend.CPU(),
            audioBackend = Backend.CPU(),
            cacheDir = cache.path,
        ),
    )

    init {
        try {
            engine.initialize()
        } catch (error: RuntimeException) { // what its JNI layer throws
            throw ModelException("LiteRT-LM cannot load ${bundle.name} (${error.message}): convert the model again.")
        }
    }

    override fun translate(sound: Sound, source: String, target: String): Flow<TranslationUpdate> = flow {
        if (source == target) throw ModelException("source and target are both $source: choose two different languages.")
        requireFitting(sound)
        val wav = Wav.write(sound.toShorts(), sound.sampleRate)
        val instruction = prompts.translate.replace("{source}", source).replace("{target}", target)
        val started = System.nanoTime()
        var firstAt = 0L
        var pieces = 0
        val text = StringBuilder()
        suspend fun report(isFinished: Boolean) {
            val now = System.nanoTime()
            val (transcript, translation) = splitTranslation(text.toString(), prompts, target)
            val statistics = Statistics(
                audioSeconds = sound.seconds,
                prefillSeconds = (if (firstAt > 0) firstAt - started else now - started) / 1e9,
                newTokens = pieces,
                decodeSeconds = if (firstAt > 0) (now - firstAt) / 1e9 else 0.0,
            )
            emit(TranslationUpdate(text.toString(), transcript, translation, statistics, isFinished))
        }
        // LiteRT-LM takes the likeliest token where there is but one candidate.
        val greedy = ConversationConfig(samplerConfig = SamplerConfig(topK = 1, topP = 1.0, temperature = 1.0))
        engine.createConversation(greedy).use { conversation ->
            var isFinished = false
            try {
                conversation.sendMessageAsync(Contents.of(Content.Text(instruction), Content.AudioBytes(wav))).catch { error ->
                    throw error as? CancellationException ?: error as? Error
                        ?: ModelException("LiteRT-LM cannot run the model (${error.message}): convert it again.")
                }.collect {
                    if (firstAt == 0L) firstAt = System.nanoTime()
                    pieces++
                    text.append(it.toString())
                    report(isFinished = false)
                }
                isFinished = true
            } finally {
                if (!isFinished) conversation.cancelProcess()
            }
        }
        report(isFinished = true)
    }.flowOn(Dispatchers.Default)

    override fun close() = engine.close()

    private fun requireFitting(sound: Sound) {
        val (rate, longest) = audio.logMel.sampleRate to audio.maxSamples
        if (sound.sampleRate != rate) throw ModelException("the sound has ${sound.sampleRate} Hz, expected $rate: record it so.")
        if (sound.waveform.size > longest) {
            throw ModelException("the sound lasts %.0f s, but the model takes ${longest / rate} s: speak shorter.".format(sound.seconds))
        }
    }
}

/** Runs a bundle that `cabochon-convert litertlm` wrote. */
class LiteRtLmTranslatorFactory : TranslatorFactory {
    override val name = "LiteRT-LM"

    override fun canOpen(folder: File): Boolean = bundle(folder) != null

    override fun open(folder: File, cache: File): Translator {
        val bundle = bundle(folder) ?: throw ModelException("there is no .litertlm file in ${folder.name}: copy it there.")
        return LiteRtLmTranslator(ModelFolder(folder), bundle, cache)
    }

    private fun bundle(folder: File): File? = folder.listFiles()?.firstOrNull { it.name.endsWith(".litertlm") }
}
