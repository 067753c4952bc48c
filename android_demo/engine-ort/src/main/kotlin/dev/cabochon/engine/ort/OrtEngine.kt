package dev.cabochon.engine.ort

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtException
import ai.onnxruntime.OrtSession
import dev.cabochon.core.Engine
import dev.cabochon.core.GraphTranslator
import dev.cabochon.core.ModelException
import dev.cabochon.core.ModelFolder
import dev.cabochon.core.OpenedParts
import dev.cabochon.core.Session
import dev.cabochon.core.Tensor
import dev.cabochon.core.TensorType
import dev.cabochon.core.Translator
import dev.cabochon.core.TranslatorFactory
import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder

/** onnxruntime's Java interface; tensors are direct buffers, which it reads and writes without copying them. */
class OrtEngine(private val threads: Int = Runtime.getRuntime().availableProcessors()) : Engine {
    // Builds since 1.29 report their use to Microsoft where nobody says this: see telemetry.py.
    private val environment = OrtEnvironment.getEnvironment().apply { setTelemetry(false) }

    override val name = "onnx"

    override fun open(path: String): Session {
        val options = OrtSession.SessionOptions()
        options.setIntraOpNumThreads(threads)
        // It would remember a plan for every shape that it met, and caches grow with every token.
        options.setMemoryPatternOptimization(false)
        // KleidiAI rounds the activations of 4-bit layers more coarsely: see backend_onnx.py.
        options.addConfigEntry("mlas.disable_kleidiai", "1")
        return try {
            OrtGraph(environment, environment.createSession(path, options))
        } catch (error: OrtException) {
            throw ModelException("onnxruntime cannot load ${File(path).name} (${error.message}): convert the model again.")
        } finally {
            options.close()
        }
    }

    override fun allocate(type: TensorType, vararg shape: Int): Tensor {
        val bytes = shape.fold(type.bytes) { product, size -> Math.multiplyExact(product, size) }
        return Tensor(type, shape, ByteBuffer.allocateDirect(maxOf(bytes, 1)).order(ByteOrder.nativeOrder()), 0)
    }

    override fun close() = Unit // the environment is the process's
}

private class OrtGraph(private val environment: OrtEnvironment, private val session: OrtSession) : Session {
    override fun run(inputs: Map<String, Tensor>, outputs: Map<String, Tensor>) {
        OpenedParts().use { wrapped ->
            try {
                val given = inputs.mapValues { wrapped.open { wrap(it.value) } }
                val taken = outputs.mapValues { wrapped.open { wrap(it.value) } }
                session.run(given, emptySet<String>(), taken, null).close()
            } catch (error: OrtException) {
                throw ModelException("onnxruntime cannot run the model (${error.message}): convert it again.")
            }
        }
    }

    override fun close() = session.close()

    private fun wrap(tensor: Tensor): OnnxTensor {
        val shape = LongArray(tensor.shape.size) { tensor.shape[it].toLong() }
        val type = when (tensor.type) {
            TensorType.FLOAT32 -> OnnxJavaType.FLOAT
            TensorType.INT32 -> OnnxJavaType.INT32
            TensorType.INT64 -> OnnxJavaType.INT64
        }
        return OnnxTensor.createTensor(environment, tensor.bytes(), shape, type)
    }
}

/** Runs what was converted with `--target onnx`. */
class OrtTranslatorFactory : TranslatorFactory {
    override val name = "onnxruntime"

    override fun canOpen(folder: File): Boolean = ModelFolder(folder).index.engine == "onnx"

    override fun open(folder: File, cache: File): Translator = GraphTranslator(ModelFolder(folder), OrtEngine())
}
