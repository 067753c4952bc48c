package dev.cabochon.demo

import android.content.Context
import android.os.Debug
import android.util.Log
import dev.cabochon.core.Device
import dev.cabochon.core.Microphone
import dev.cabochon.core.ModelException
import dev.cabochon.core.Translator
import dev.cabochon.core.TranslatorFactory
import java.io.File
import java.util.ServiceLoader

/** Microphone, engines and memory of this phone. */
class Phone(private val context: Context) : Device {
    override fun microphone(sampleRate: Int, longest: Int): Microphone = Recorder(context, sampleRate, longest)

    override fun openTranslator(folder: File): Translator {
        val factories = ServiceLoader.load(TranslatorFactory::class.java, javaClass.classLoader).toList()
        val factory = factories.firstOrNull { it.canOpen(folder) } ?: throw ModelException(
            if (factories.isEmpty()) "This app was built without an engine: build it with Gradle."
            else "${factories.joinToString { it.name }} cannot run this model: choose another one.",
        )
        return factory.open(folder, context.cacheDir)
    }

    override fun usedMegabytes(): Long = Debug.getPss() / 1024

    override fun log(error: Throwable) {
        Log.e("cabochon", "nobody expected this", error)
    }
}
