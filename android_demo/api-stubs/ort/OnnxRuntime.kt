// What engine-ort uses of onnxruntime's Java interface (ai.onnxruntime 1.27), to compile it where Maven is out of reach.
package ai.onnxruntime

import java.nio.ByteBuffer

class OrtException(message: String) : Exception(message)

enum class OnnxJavaType { FLOAT, INT32, INT64 }

interface OnnxValue : AutoCloseable

class OnnxTensor private constructor() : OnnxValue {
    override fun close() = Unit

    companion object {
        @JvmStatic
        @Suppress("UNUSED_PARAMETER")
        fun createTensor(environment: OrtEnvironment, data: ByteBuffer, shape: LongArray, type: OnnxJavaType): OnnxTensor = TODO()
    }
}

class OrtEnvironment private constructor() {
    @Suppress("UNUSED_PARAMETER")
    fun createSession(path: String, options: OrtSession.SessionOptions): OrtSession = TODO()

    @Suppress("UNUSED_PARAMETER")
    fun setTelemetry(sendTelemetry: Boolean): Unit = TODO()

    companion object {
        @JvmStatic
        fun getEnvironment(): OrtEnvironment = TODO()
    }
}

class OrtSession private constructor() : AutoCloseable {
    /** Outputs that are given are written where they lie: https://github.com/microsoft/onnxruntime/pull/16835 */
    @Suppress("UNUSED_PARAMETER")
    fun run(
        inputs: Map<String, OnnxTensor>,
        requestedOutputs: Set<String>,
        pinnedOutputs: Map<String, OnnxValue>,
        options: RunOptions?,
    ): Result = TODO()

    override fun close() = Unit

    class Result : AutoCloseable {
        override fun close() = Unit
    }

    class RunOptions

    @Suppress("UNUSED_PARAMETER")
    class SessionOptions : AutoCloseable {
        fun setIntraOpNumThreads(count: Int) = Unit
        fun setMemoryPatternOptimization(isOn: Boolean) = Unit
        fun addConfigEntry(key: String, value: String) = Unit
        override fun close() = Unit
    }
}
