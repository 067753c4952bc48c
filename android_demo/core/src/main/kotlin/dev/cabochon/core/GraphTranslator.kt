package dev.cabochon.core

import java.nio.FloatBuffer
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.flow.Flow
import kotlinx.coroutines.flow.FlowCollector
import kotlinx.coroutines.flow.flow
import kotlinx.coroutines.flow.flowOn
import kotlinx.coroutines.sync.Mutex
import kotlinx.coroutines.sync.withLock

/** The whole way on one screen: waveform, log-mel, audio encoder, embeddings, decode loop, text. */
class GraphTranslator(
    model: ModelFolder,
    private val engine: Engine,
    private val settings: SamplingSettings = SamplingSettings(),
    private val longestAnswer: Int = 1024,
    contextLength: Int = 0,
) : Translator {
    private val manifest = model.manifest
    private val graphs = manifest.engines[engine.name]
        ?: throw ModelException("the model has no graphs for ${engine.name}: convert it with --target ${engine.name}.")
    private val encoderGraph = graphs.audioEncoder ?: throw ModelException("the model hears nothing: convert it with audio.")
    private val opened = OpenedParts(engine)
    private val tokenizer = opened.open { model.readTokenizer() }
    private val logMel = opened.open { model.readLogMel() }
    private val prompts = opened.open { PromptBuilder(model.prompts, manifest.prompts, manifest.audio, tokenizer) }
    private val tokenRows = opened.open { EmbeddingRows(model.folder, graphs.tokenEmbeddings) }
    private val perLayerRows = graphs.perLayerEmbeddings?.let { opened.open { EmbeddingRows(model.folder, it) } }
    private val encoder = opened.open { engine.open(model.file(encoderGraph.file).path) }
    private val decoderSession = opened.open { engine.open(model.file(graphs.decoder.file).path) }
    private val decoder = opened.open {
        val capacity = if (contextLength > 0) minOf(contextLength, manifest.text.contextLength) else manifest.text.contextLength
        Decoder(engine, decoderSession, manifest.text, graphs.caches, graphs.decoder, capacity)
    }
    private val turn = Mutex()

    override fun translate(sound: Sound, source: String, target: String): Flow<TranslationUpdate> = flow {
        turn.withLock { answer(sound, source, target) }
    }.flowOn(Dispatchers.Default)

    override fun close() = opened.close()

    /** Log-mel frames [frames, melBins] of a sound. */
    fun frames(sound: Sound): FloatArray {
        val audio = manifest.audio
        if (sound.sampleRate != audio.logMel.sampleRate) {
            throw ModelException("the sound has ${sound.sampleRate} Hz, expected ${audio.logMel.sampleRate}: record it so.")
        }
        if (sound.waveform.size > audio.maxSamples) {
            val limit = audio.maxSamples / audio.logMel.sampleRate
            throw ModelException("the sound lasts %.0f s, but the model takes $limit s: speak shorter.".format(sound.seconds))
        }
        val frames = logMel.compute(sound.waveform)
        if (frames.isEmpty()) throw ModelException("the sound lasts %.2f s, too short to hold speech.".format(sound.seconds))
        return frames
    }

    /** Log-mel frames to embeddings [tokens, hidden]. */
    fun encode(frames: FloatArray): FloatArray {
        val count = frames.size / manifest.audio.logMel.melBins
        val input = engine.allocate(TensorType.FLOAT32, 1, count, manifest.audio.logMel.melBins)
        input.floats().put(frames)
        val tokens = manifest.audio.tokenCount(count)
        val output = engine.allocate(TensorType.FLOAT32, 1, tokens, manifest.text.hiddenSize)
        encoder.run(mapOf(encoderGraph.inputs.single().name to input), mapOf("audio_embeddings" to output))
        return FloatArray(output.count).also { output.floats().get(it) }
    }

    fun prompt(source: String, target: String, audioTokens: Int): IntArray = prompts.translation(source, target, audioTokens)

    /** Runs a prompt; returns the logits behind its last position. */
    fun prefill(tokens: IntArray, audioEmbeddings: FloatArray): FloatArray {
        if (tokens.size >= decoder.capacity) {
            throw ModelException("the prompt takes ${tokens.size} of ${decoder.capacity} positions: speak shorter.")
        }
        val audio = FloatBuffer.wrap(audioEmbeddings)
        var logits = FloatArray(0)
        for (start in tokens.indices step Decoder.LONGEST_RUN) {
            val chunk = tokens.copyOfRange(start, minOf(start + Decoder.LONGEST_RUN, tokens.size))
            logits = decoder.run(embed(chunk, audio), start)
        }
        return logits
    }

    private suspend fun FlowCollector<TranslationUpdate>.answer(sound: Sound, source: String, target: String) {
        val clock = Clock()
        val embeddings = encode(frames(sound))
        var statistics = Statistics(sound.seconds, encodeSeconds = clock.lap())
        val tokens = prompt(source, target, embeddings.size / manifest.text.hiddenSize)
        var logits = prefill(tokens, embeddings)
        statistics = statistics.copy(promptPositions = tokens.size, prefillSeconds = clock.lap())
        val text = StringBuilder()
        suspend fun report(isFinished: Boolean) {
            val (transcript, translation) = splitTranslation(text.toString(), manifest.prompts, target)
            emit(TranslationUpdate(text.toString(), transcript, translation, statistics, isFinished))
        }
        val sampler = Sampler(settings, manifest.sampling.suppressTokens, manifest.text.finalLogitSoftcap)
        val stream = tokenizer.startStream()
        var position = tokens.size
        for (remaining in longestAnswer downTo 1) {
            val token = sampler.choose(logits)
            if (token in manifest.sampling.stopTokens) break
            val piece = stream.push(token)
            text.append(piece)
            statistics = statistics.copy(
                newTokens = statistics.newTokens + 1, decodeSeconds = statistics.decodeSeconds + clock.lap(),
            )
            report(isFinished = false) // also where a cancelled answer ends
            clock.lap() // whoever draws the text is not the model
            if (position >= decoder.capacity || remaining == 1) break
            logits = decoder.run(embed(intArrayOf(token), NO_AUDIO), position++)
        }
        text.append(stream.finish())
        report(isFinished = true)
    }

    /** A soft token is looked up as the pad token in both tables before its embedding is replaced, as in training. */
    private fun embed(tokens: IntArray, audio: FloatBuffer): RunInputs {
        val inputs = decoder.inputs(tokens.size)
        val embeddings = inputs.embeddings.floats()
        val perLayer = inputs.perLayer.floats()
        for (token in tokens) {
            val isSoft = token == manifest.audio.softToken
            if (isSoft) repeat(manifest.text.hiddenSize) { embeddings.put(audio.get()) } else tokenRows.lookUp(token, embeddings)
            perLayerRows?.lookUp(if (isSoft) manifest.padToken else token, perLayer)
        }
        return inputs
    }

    private companion object {
        val NO_AUDIO: FloatBuffer = FloatBuffer.allocate(0)
    }
}

private class Clock {
    private var started = System.nanoTime()

    /** Seconds since the last call. */
    fun lap(): Double {
        val now = System.nanoTime()
        return ((now - started) / 1e9).also { started = now }
    }
}
