// What engine-litertlm uses of LiteRT-LM's Kotlin interface (0.16), to compile it where Google's Maven is out of reach.
package com.google.ai.edge.litertlm

import kotlinx.coroutines.flow.Flow

sealed class Backend(val name: String) {
    data class CPU(val threadCount: Int? = null) : Backend("CPU")

    class GPU : Backend("GPU")
}

data class EngineConfig(
    val modelPath: String,
    val backend: Backend = Backend.CPU(),
    val visionBackend: Backend? = null,
    val audioBackend: Backend? = null,
    val maxNumTokens: Int? = null,
    val maxNumImages: Int? = null,
    val cacheDir: String? = null,
)

data class SamplerConfig(val topK: Int, val topP: Double, val temperature: Double, val seed: Int = 0)

class Contents private constructor() {
    companion object {
        @Suppress("UNUSED_PARAMETER")
        fun of(vararg contents: Content): Contents = TODO()
    }
}

sealed class Content {
    data class Text(val text: String) : Content()

    data class AudioBytes(val bytes: ByteArray) : Content()
}

class Message private constructor()

data class ConversationConfig(val systemInstruction: Contents? = null, val samplerConfig: SamplerConfig? = null)

class Conversation private constructor() : AutoCloseable {
    @Suppress("UNUSED_PARAMETER")
    fun sendMessageAsync(contents: Contents): Flow<Message> = TODO()

    fun cancelProcess() = Unit

    override fun close() = Unit
}

@Suppress("UNUSED_PARAMETER")
class Engine(config: EngineConfig) : AutoCloseable {
    fun initialize() = Unit

    fun createConversation(config: ConversationConfig = ConversationConfig()): Conversation = TODO()

    override fun close() = Unit
}
