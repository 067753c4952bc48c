package dev.cabochon.core

/** The caches of sliding-window layers hold the newest positions only, in order: `sliding_cache.py` in Kotlin. */
class SlidingCaches(private val buffers: List<Tensor>, private val window: Int, private val capacity: Int) {
    private var first = 0
    private var end = 0

    /**
     * Forgets what lies behind a position and what no later window needs.
     *
     * Returns: the rows that a run of [count] positions from [position] on can see, its own included.
     */
    fun makeRoom(position: Int, count: Int): IntRange {
        if (position == 0) {
            first = 0
            end = 0
        }
        val earliest = if (first > 0) first + window - 1 else 0
        require(position in earliest..end) { "a run at $position is impossible: the caches hold $earliest to $end" }
        var rows = position - first
        if (rows + count > capacity) rows = move(rows, count)
        end = position + count
        return maxOf(0, rows - (window - 1)) until rows + count
    }

    /** Moves the newest rows to the front; more than a window where there is room, so that moving is rare. */
    private fun move(rows: Int, count: Int): Int {
        val spare = (capacity - window) / 2
        val kept = minOf(rows, maxOf(window - 1, capacity - count - spare))
        buffers.forEach { moveToFront(it, rows - kept, kept) }
        first += rows - kept
        return kept
    }

    private fun moveToFront(buffer: Tensor, from: Int, count: Int) {
        val (_, heads, rows, size) = buffer.shape.asList()
        val values = FloatArray(count * size)
        for (head in 0 until heads) {
            val content = buffer.floats()
            content.position((head * rows + from) * size)
            content.get(values)
            content.position(head * rows * size)
            content.put(values)
        }
    }

    companion object {
        /** Rows that a sliding cache needs: a window and the longest run, or the whole context where that is less. */
        fun capacity(window: Int, contextLength: Int): Int = minOf(contextLength, window + Decoder.LONGEST_RUN)
    }
}
