package dev.cabochon.core

/** The text decoder with its caches, over a [Session]; `OnnxDecoder` in `backend_onnx.py` binds the same. */
class Decoder(
    private val engine: Engine,
    private val session: Session,
    private val text: TextModel,
    private val caches: List<KeyValueCache>,
    graph: Graph,
    /** Positions that the caches hold. */
    val capacity: Int,
) {
    private val inputNames = graph.inputs.map { it.name }.toSet()
    private val outputNames = graph.outputs.map { it.name }.toSet()
    private val buffers = caches.map { cache ->
        val rows = if (cache.isSliding) SlidingCaches.capacity(cache.window, capacity) else capacity
        List(2) { engine.allocate(TensorType.FLOAT32, 1, cache.heads, rows, cache.headSize) } // keys, values
    }
    private val sliding = caches.zip(buffers).filter { (cache, _) -> cache.isSliding }.let { pairs ->
        val window = pairs.firstOrNull()?.first?.window ?: return@let null
        SlidingCaches(pairs.flatMap { it.second }, window, SlidingCaches.capacity(window, capacity))
    }
    // Rows of one head lie together, so that a graph is given those that a run can see, and no others.
    private val slidingBoundExactly = caches.filter { it.isSliding }.all { it.heads == 1 }
    private val fullBoundExactly = caches.filterNot { it.isSliding }.all { it.heads == 1 }
    private val totalLength = engine.allocate(TensorType.INT32)
    private val windowLength = engine.allocate(TensorType.INT32)
    private val logitsToKeep = engine.allocate(TensorType.INT64, 1).also { it.longs().put(0, 1) }
    private val logits = engine.allocate(TensorType.FLOAT32, 1, 1, text.vocabularySize)
    private val longInputs = inputsFor(LONGEST_RUN)
    private val shortInputs = inputsFor(1)

    init {
        require(capacity in 1..text.contextLength) { "a context of $capacity positions" }
    }

    /** Memory to write [count] positions into, before [run]: embeddings [1, count, hidden] and per-layer inputs. */
    fun inputs(count: Int): RunInputs {
        require(count in 1..LONGEST_RUN) { "$count positions in one run, expected 1 to $LONGEST_RUN" }
        return (if (count == 1) shortInputs else longInputs).first(count)
    }

    /** Runs these positions from [position] on; returns the logits behind the last one, valid until the next run. */
    fun run(inputs: RunInputs, position: Int): FloatArray {
        val count = inputs.count
        require(position >= 0 && position + count <= capacity) { "$count positions from $position on do not fit" }
        val slidingRows = sliding?.makeRoom(position, count)
        totalLength.integers().put(0, position + count)
        val given = LinkedHashMap<String, Tensor>()
        val taken = LinkedHashMap<String, Tensor>()
        given["inputs_embeds"] = inputs.embeddings
        if (text.perLayerInputSize > 0) given["per_layer_inputs"] = inputs.perLayer
        given["total_length"] = totalLength
        given["logits_to_keep"] = logitsToKeep
        if (slidingRows != null) {
            val visible = if (slidingBoundExactly) slidingRows.count() else slidingRows.last + 1
            windowLength.integers().put(0, visible)
            given["window_length"] = windowLength
        }
        caches.zip(buffers) { cache, (keys, values) ->
            val rows = if (cache.isSliding) slidingRows!! else 0 until position + count
            val exactly = if (cache.isSliding) slidingBoundExactly else fullBoundExactly
            fun seen(tensor: Tensor) = if (exactly) tensor.rows(rows.first, rows.count()) else tensor
            given[cache.pastKey] = seen(keys)
            given[cache.pastValue] = seen(values)
            taken[cache.presentKey] = seen(keys)
            taken[cache.presentValue] = seen(values)
        }
        taken["logits"] = logits
        session.run(given.filterKeys { it in inputNames }, taken.filterKeys { it in outputNames })
        return FloatArray(text.vocabularySize).also { logits.floats().get(it) }
    }

    private fun inputsFor(count: Int) = RunInputs(
        count,
        engine.allocate(TensorType.FLOAT32, 1, count, text.hiddenSize),
        engine.allocate(TensorType.FLOAT32, 1, count, text.perLayerWidth),
    )

    companion object {
        /** Positions of one run at most: bounds the memory of activations and of sliding caches. */
        const val LONGEST_RUN = 512
    }
}

/** What a decoder takes of some positions. */
class RunInputs(val count: Int, val embeddings: Tensor, val perLayer: Tensor) {
    fun first(count: Int): RunInputs = if (count == this.count) this else RunInputs(count, cut(embeddings, count), cut(perLayer, count))

    private fun cut(tensor: Tensor, count: Int) =
        Tensor(tensor.type, intArrayOf(1, count, tensor.shape[2]), tensor.memory, tensor.offset)
}
