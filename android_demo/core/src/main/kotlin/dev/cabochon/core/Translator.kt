package dev.cabochon.core

import java.io.Closeable
import java.io.File
import kotlinx.coroutines.flow.Flow

/** What an answer cost so far. */
data class Statistics(
    val audioSeconds: Double = 0.0,
    /** Frames and audio encoder. */
    val encodeSeconds: Double = 0.0,
    val promptPositions: Int = 0,
    val prefillSeconds: Double = 0.0,
    val newTokens: Int = 0,
    val decodeSeconds: Double = 0.0,
) {
    val tokensPerSecond: Double get() = if (decodeSeconds > 0) newTokens / decodeSeconds else 0.0
    val totalSeconds: Double get() = encodeSeconds + prefillSeconds + decodeSeconds
}

/** An answer while it comes; the last update is finished. */
data class TranslationUpdate(
    val text: String,
    val transcript: String,
    val translation: String,
    val statistics: Statistics,
    val isFinished: Boolean,
)

/** A loaded model that translates speech; one answer at a time. */
interface Translator : Closeable {
    /**
     * Transcript of a sound in its source language, then its translation; cancelling the collection ends it.
     *
     * Args: source, target: English names of languages.
     */
    fun translate(sound: Sound, source: String, target: String): Flow<TranslationUpdate>
}

/** An engine on the class path; java.util.ServiceLoader finds it, so that the app knows none by name. */
interface TranslatorFactory {
    val name: String

    /** Whether it runs what lies in a folder. */
    fun canOpen(folder: File): Boolean

    /** Loads the model, which takes seconds. Args: cache: a folder for what only saves time. */
    fun open(folder: File, cache: File): Translator
}
