package dev.cabochon.core

import java.io.Reader

/** The facts of `manifest.json` that a phone needs: `runtime/cabochon/manifest.py` describes every one of them. */
data class Manifest(
    val text: TextModel,
    val audio: AudioModel,
    val padToken: Int,
    val prompts: Prompts,
    val sampling: SamplingDefaults,
    val tokenizerFile: String,
    /** By name: `onnx` or `litert`. */
    val engines: Map<String, EngineGraphs>,
) {
    companion object {
        const val FORMAT_VERSION = 4

        /** Strict: an unknown format, key or value is refused in one sentence. */
        fun read(source: Reader): Manifest = JsonObject.read(source, "manifest.json").let { json ->
            val version = json.int("format_version")
            if (version != FORMAT_VERSION) {
                throw ModelException(
                    "manifest.json has format $version, expected $FORMAT_VERSION: convert the checkpoint again.",
                )
            }
            json.ignore(
                "created_by", "source", "recipe", "vision", "bos_token", "chat_template_file", "files",
            )
            val engines = json.child("engines")
            Manifest(
                textModel(json.child("text")),
                audioModel(json.childOrNull("audio") ?: throw ModelException("the model hears nothing: convert one with audio.")),
                json.int("pad_token"),
                prompts(json.child("prompts")),
                samplingDefaults(json.child("sampling")),
                json.text("tokenizer_file"),
                engines.keys.associateWith { engineGraphs(engines.child(it)) },
            ).also { json.requireNoOther() }
        }
    }
}

data class TextModel(
    val vocabularySize: Int,
    val hiddenSize: Int,
    val layerCount: Int,
    val perLayerInputSize: Int,
    /** Positions that the graph can address. */
    val contextLength: Int,
    /** Logits are replaced by cap * tanh(logits / cap) before sampling; 0: there is no cap. */
    val finalLogitSoftcap: Double,
) {
    /** Values of all layers' inputs for one position. */
    val perLayerWidth: Int get() = layerCount * perLayerInputSize

    init {
        require(minOf(vocabularySize, hiddenSize, layerCount, contextLength) > 0 && perLayerInputSize >= 0)
    }
}

data class AudioModel(
    val logMel: LogMelParameters,
    /** Longest clip that the model was trained on, in samples. */
    val maxSamples: Int,
    val framesPerToken: Int,
    val beginToken: Int,
    val softToken: Int,
    val endToken: Int,
) {
    /** Audio tokens that the encoder makes of this many frames. */
    fun tokenCount(frames: Int): Int = (frames + framesPerToken - 1) / framesPerToken
}

/** Instructions that the model was trained to follow. */
data class Prompts(
    val transcribe: String,
    val transcribeUnknownLanguage: String,
    val translate: String,
    val translationMarker: String,
)

data class SamplingDefaults(
    val temperature: Double,
    val topK: Int,
    val topP: Double,
    val stopTokens: List<Int>,
    val suppressTokens: List<Int>,
)

/** Rows of equal length at equal distance in one file. */
data class RowRegion(val file: String, val offset: Long, val stride: Long) {
    init {
        require(offset >= 0 && stride > 0) { "the rows in $file have an impossible offset or stride" }
    }
}

/** See `EmbeddingTable` in manifest.py. */
data class EmbeddingTable(
    val rows: Int,
    val columns: Int,
    val storage: String,
    val signed: Boolean,
    val values: RowRegion,
    val blockSize: Int,
    val scales: RowRegion?,
    val scaleStorage: String?,
    val zeroPoints: RowRegion?,
    val rowScale: Double,
) {
    /** Of one value. */
    val bits: Int = STORAGE_BITS[storage] ?: throw ModelException("the table storage $storage is unknown: update the app.")
    val isInteger: Boolean get() = storage.startsWith("int")

    init {
        require(rows > 0 && columns > 0) { "an embedding table has no rows or no columns" }
        require(!isInteger || (scales != null && blockSize > 0 && columns % blockSize == 0 && columns * bits % 8 == 0)) {
            "an embedding table's blocks do not fill its rows"
        }
    }

    private companion object {
        val STORAGE_BITS =
            mapOf("float32" to 32, "float16" to 16, "bfloat16" to 16, "int8" to 8, "int4" to 4, "int2" to 2)
    }
}

data class GraphTensor(val name: String, val type: String)

data class Graph(val file: String, val inputs: List<GraphTensor>, val outputs: List<GraphTensor>)

/** The cache of one layer: the graph's output buffer is its input buffer. */
data class KeyValueCache(
    val window: Int,
    val heads: Int,
    val headSize: Int,
    val pastKey: String,
    val pastValue: String,
    val presentKey: String,
    val presentValue: String,
) {
    val isSliding: Boolean get() = window > 0
}

data class EngineGraphs(
    val decoder: Graph,
    val caches: List<KeyValueCache>,
    val audioEncoder: Graph?,
    val audioProjector: Graph?,
    val tokenEmbeddings: EmbeddingTable,
    val perLayerEmbeddings: EmbeddingTable?,
)

private fun <T> strictly(json: JsonObject, read: (JsonObject) -> T): T = try {
    read(json).also { json.requireNoOther() }
} catch (error: IllegalArgumentException) {
    throw ModelException("manifest.json is impossible (${error.message}): convert the checkpoint again.")
}

private fun textModel(section: JsonObject) = strictly(section) {
    TextModel(
        it.int("vocabulary_size"), it.int("hidden_size"), it.int("layer_count"), it.int("per_layer_input_size"),
        it.int("context_length"), it.double("final_logit_softcap"),
    )
}

private fun audioModel(section: JsonObject) = strictly(section) {
    if (it.childOrNull("waveform_frames") != null) {
        throw ModelException("the model hears without an audio encoder, which this app does not know: take E2B or E4B.")
    }
    AudioModel(
        logMelParameters(it.child("log_mel")), it.int("max_samples"), it.int("frames_per_token"),
        it.int("begin_token"), it.int("soft_token"), it.int("end_token"),
    )
}

private fun logMelParameters(section: JsonObject) = strictly(section) {
    it.ignore("min_frequency", "max_frequency") // they are in mel_filters.bin
    LogMelParameters(
        it.int("sample_rate"), it.int("frame_length"), it.int("hop_length"), it.int("fft_length"), it.int("mel_bins"),
        it.double("mel_floor"),
    )
}

private fun prompts(section: JsonObject) = strictly(section) {
    Prompts(
        it.text("transcribe"), it.text("transcribe_unknown_language"), it.text("translate"),
        it.text("translation_marker"),
    )
}

private fun samplingDefaults(section: JsonObject) = strictly(section) {
    SamplingDefaults(
        it.double("temperature"), it.int("top_k"), it.double("top_p"), it.integers("stop_tokens"),
        it.integers("suppress_tokens"),
    )
}

private fun engineGraphs(section: JsonObject) = strictly(section) {
    it.ignore("vision_encoder", "vision_projector", "drafter")
    EngineGraphs(
        graph(it.child("decoder")), it.children("caches").map(::cache), it.childOrNull("audio_encoder")?.let(::graph),
        it.childOrNull("audio_projector")?.let(::graph), table(it.child("token_embeddings")),
        it.childOrNull("per_layer_embeddings")?.let(::table),
    )
}

private fun graph(section: JsonObject) = strictly(section) {
    Graph(it.text("file"), it.children("inputs").map(::tensor), it.children("outputs").map(::tensor))
}

private fun tensor(section: JsonObject) = strictly(section) {
    it.ignore("shape")
    GraphTensor(it.text("name"), it.text("dtype"))
}

private fun cache(section: JsonObject) = strictly(section) {
    it.ignore("layer", "kind")
    KeyValueCache(
        it.int("window"), it.int("heads"), it.int("head_size"), it.text("past_key"), it.text("past_value"),
        it.text("present_key"), it.text("present_value"),
    )
}

private fun table(section: JsonObject) = strictly(section) {
    EmbeddingTable(
        it.int("rows"), it.int("columns"), it.text("storage"), it.boolean("signed"), region(it.child("values")),
        it.int("block_size"), it.childOrNull("scales")?.let(::region), it.textOrNull("scale_storage"),
        it.childOrNull("zero_points")?.let(::region), it.double("row_scale"),
    )
}

private fun region(section: JsonObject) = strictly(section) {
    RowRegion(it.text("file"), it.long("offset"), it.long("stride"))
}
