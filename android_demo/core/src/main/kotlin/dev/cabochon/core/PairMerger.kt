package dev.cabochon.core

import java.util.PriorityQueue

/** Which pairs of tokens merge, into what, and which first: half a million of them, without an object for each. */
class PairTable(capacity: Int) {
    private val mask = Integer.highestOneBit(maxOf(16, capacity) * 2 - 1) * 2 - 1
    private val pairs = LongArray(mask + 1) { EMPTY }
    private val ranks = IntArray(mask + 1)
    private val merged = IntArray(mask + 1)

    /** A pair that is there already keeps its rank. */
    fun add(left: Int, right: Int, rank: Int, result: Int) {
        val pair = key(left, right)
        val slot = slot(pair)
        if (pairs[slot] != EMPTY) return
        pairs[slot] = pair
        ranks[slot] = rank
        merged[slot] = result
    }

    /** The slot of a pair, or -1. */
    fun find(left: Int, right: Int): Int = slot(key(left, right)).let { if (pairs[it] == EMPTY) -1 else it }

    fun rank(slot: Int): Int = ranks[slot]

    fun result(slot: Int): Int = merged[slot]

    private fun key(left: Int, right: Int) = (left.toLong() shl 32) or right.toLong()

    private fun slot(pair: Long): Int {
        var slot = (pair * -7046029254386353131L ushr 32).toInt() and mask
        while (pairs[slot] != EMPTY && pairs[slot] != pair) slot = (slot + 1) and mask
        return slot
    }

    private companion object {
        const val EMPTY = -1L
    }
}

/** Byte-pair encoding of one text: the pair of lowest rank merges first, of equal ones the leftmost. */
class PairMerger(private val symbols: IntArray, private val table: PairTable) {
    private class Candidate(val rank: Int, val left: Int, val right: Int, val leftToken: Int, val rightToken: Int)

    private val next = IntArray(symbols.size) { if (it + 1 < symbols.size) it + 1 else END }
    private val previous = IntArray(symbols.size) { it - 1 }
    private val candidates = PriorityQueue<Candidate>(16, compareBy<Candidate> { it.rank }.thenBy { it.left })

    /** The tokens that are left. */
    fun merge(): IntArray {
        for (left in 0 until symbols.size - 1) consider(left, left + 1)
        while (true) {
            val candidate = candidates.poll() ?: break
            // One of the two may have merged with its other neighbour since.
            val stands = symbols[candidate.left] == candidate.leftToken && next[candidate.left] == candidate.right &&
                symbols[candidate.right] == candidate.rightToken
            if (stands) replace(candidate)
        }
        val tokens = TokenList()
        var index = if (symbols.isEmpty()) END else 0
        while (index != END) {
            tokens.add(symbols[index])
            index = next[index]
        }
        return tokens.toArray()
    }

    private fun replace(candidate: Candidate) {
        val (left, right) = candidate.left to candidate.right
        symbols[left] = table.result(table.find(candidate.leftToken, candidate.rightToken))
        symbols[right] = GONE
        next[left] = next[right]
        if (next[left] != END) previous[next[left]] = left
        if (previous[left] >= 0) consider(previous[left], left)
        if (next[left] != END) consider(left, next[left])
    }

    private fun consider(left: Int, right: Int) {
        val slot = table.find(symbols[left], symbols[right])
        if (slot >= 0) candidates.add(Candidate(table.rank(slot), left, right, symbols[left], symbols[right]))
    }

    private companion object {
        const val END = -1
        const val GONE = -2
    }
}
