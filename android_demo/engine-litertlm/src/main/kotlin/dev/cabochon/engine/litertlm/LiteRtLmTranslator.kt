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
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
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
        engine.initialize()
    }

    override fun translate(sound: Sound, source: String, target: String): Flow<TranslationUpdate> = flow {
        if (source == target) throw ModelException("source and target are both $source: choose two different languages.")
        if (sound.sampleRate != audio.logMel.sampleRate || sound.waveform.size > audio.maxSamples) {
            throw ModelException("the sound lasts ${sound.seconds} s at ${sound.sampleRate} Hz: speak shorter.")
        }
        val samples = ShortArray(sound.waveform.size) { (sound.waveform[it] * Short.MAX_VALUE).toInt().toShort() }
        val wav = Wav.write(samples, sound.sampleRate)
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
                conversation.sendMessageAsync(Contents.of(Content.Text(instruction), Content.AudioBytes(wav))).collect {
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
