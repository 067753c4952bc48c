package dev.cabochon.core

import java.io.Reader

/** What prompts.json holds: languages to choose from, and the chat template around an instruction and a sound. */
class PromptTexts private constructor(
    val languages: List<String>,
    val beforeInstruction: String,
    val beforeAudio: String,
    val afterAudio: String,
) {
    companion object {
        fun read(source: Reader): PromptTexts {
            val json = JsonObject.read(source, "prompts.json")
            val speech = json.child("speech")
            val texts = PromptTexts(
                json.texts("languages"), speech.text("before_instruction"), speech.text("before_audio"),
                speech.text("after_audio"),
            )
            json.requireNoOther()
            speech.requireNoOther()
            return texts
        }
    }
}

/** Turns an instruction and a number of audio tokens into the tokens of a prompt. */
class PromptBuilder(
    private val texts: PromptTexts,
    private val prompts: Prompts,
    private val audio: AudioModel,
    private val tokenizer: Tokenizer,
) {
    fun translation(source: String, target: String, audioTokens: Int): IntArray {
        if (source == target) throw ModelException("source and target are both $source: choose two different languages.")
        return build(translationInstruction(source, target), audioTokens)
    }

    /** The instruction for a transcript in the source language followed by its translation. */
    fun translationInstruction(source: String, target: String): String =
        prompts.translate.replace("{source}", source).replace("{target}", target)

    private fun build(instruction: String, audioTokens: Int): IntArray {
        val tokens = TokenList()
        val soft = tokenizer.decodeWithControlTokens(intArrayOf(audio.softToken))
        val text = texts.beforeInstruction + instruction + texts.beforeAudio + soft + texts.afterAudio
        for (token in tokenizer.encode(text)) {
            if (token != audio.softToken) {
                tokens.add(token)
            } else {
                tokens.add(audio.beginToken)
                repeat(audioTokens) { tokens.add(audio.softToken) }
                tokens.add(audio.endToken)
            }
        }
        return tokens.toArray()
    }
}

/** A model's answer so far, split at the marker: both may still be empty. */
data class SplitAnswer(val transcript: String, val translation: String)

fun splitTranslation(text: String, prompts: Prompts, target: String): SplitAnswer {
    val marker = prompts.translationMarker.replace("{target}", target)
    val place = text.indexOf(marker)
    if (place < 0) return SplitAnswer(text.trim(), "")
    return SplitAnswer(text.substring(0, place).trim(), text.substring(place + marker.length).trim())
}
