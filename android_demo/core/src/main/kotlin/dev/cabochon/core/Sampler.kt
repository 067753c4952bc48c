package dev.cabochon.core

import kotlin.math.exp
import kotlin.math.tanh
import kotlin.random.Random

/** How an answer's tokens are chosen. */
data class SamplingSettings(
    /** 0 takes the likeliest token. */
    val temperature: Double = 0.0,
    /** Candidates; 0 means all. */
    val topK: Int = 0,
    /** Smallest probability mass that the candidates must hold together. */
    val topP: Double = 1.0,
    val seed: Int? = null,
) {
    init {
        if (!(temperature >= 0 && temperature.isFinite() && topK >= 0 && topP > 0 && topP <= 1)) {
            throw ModelException("$this is impossible: expected temperature and topK from 0 on, and 0 < topP <= 1.")
        }
    }
}

/** Chooses tokens from logits: `sampling.py` in Kotlin. */
class Sampler(private val settings: SamplingSettings, private val suppress: List<Int>, private val softcap: Double) {
    private val random = settings.seed?.let { Random(it) } ?: Random.Default

    /** The next token, from raw (not yet soft-capped) logits, which are changed. */
    fun choose(logits: FloatArray): Int {
        suppress.forEach { logits[it] = Float.NEGATIVE_INFINITY }
        if (settings.temperature == 0.0) return choosePlain(logits)
        val candidates = candidates(logits)
        var rest = random.nextDouble() * candidates.sumOf { it.probability }
        return (candidates.firstOrNull { rest -= it.probability; rest < 0 } ?: candidates.last()).token
    }

    /** Engines add up in different orders: of tokens this close to the largest logit, the lowest is taken. */
    private fun choosePlain(logits: FloatArray): Int {
        val enough = logits.max() - NEAR_TIE
        return logits.indexOfFirst { it >= enough }
    }

    class Candidate(val token: Int, val probability: Double)

    /** After top-k, soft cap, temperature and top-p, likeliest first. */
    fun candidates(logits: FloatArray): List<Candidate> {
        val order = logits.indices.sortedByDescending { logits[it] }
        val tokens = if (settings.topK in 1 until logits.size) order.take(settings.topK) else order
        val largest = capped(logits[tokens[0]])
        val weights = tokens.map { exp((capped(logits[it]) - largest) / settings.temperature) }
        val total = weights.sum()
        var before = 0.0
        // A candidate is kept while the mass before it is below top-p, so that the likeliest one always stays.
        val kept = weights.takeWhile { weight -> (before < settings.topP).also { before += weight / total } }
        return kept.mapIndexed { index, weight -> Candidate(tokens[index], weight / kept.sum()) }
    }

    private fun capped(logit: Float): Double =
        if (softcap == 0.0 || logit == Float.NEGATIVE_INFINITY) logit.toDouble() else softcap * tanh(logit / softcap)

    private companion object {
        const val NEAR_TIE = 1e-4f
    }
}
