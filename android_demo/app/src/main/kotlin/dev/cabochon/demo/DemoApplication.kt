package dev.cabochon.demo

import android.app.Application
import android.os.Handler
import android.os.Looper
import dev.cabochon.core.DemoSession
import dev.cabochon.core.ModelInstaller
import dev.cabochon.core.UnfinishedDownload
import java.util.concurrent.Executor
import kotlinx.coroutines.asCoroutineDispatcher

/** The main thread, which the screen belongs to; the same as kotlinx-coroutines-android's, without that library. */
val mainDispatcher = Executor { Handler(Looper.getMainLooper()).post(it) }.asCoroutineDispatcher()

/** Holds what outlives the activity, which is made anew when the phone is turned. */
class DemoApplication : Application() {
    val store by lazy { ModelStore(this) }

    private val lazySession = lazy {
        val unfinished = UnfinishedDownload(filesDir.resolve("unfinished_download"))
        DemoSession(ModelInstaller(store.folder, unfinished), Phone(this), mainDispatcher)
    }
    val session: DemoSession by lazySession

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        // Android 14 and newer say no more than BACKGROUND before they end the process.
        if (level >= TRIM_MEMORY_BACKGROUND || level == TRIM_MEMORY_RUNNING_CRITICAL) unload()
    }

    @Deprecated("Of systems that know no levels")
    override fun onLowMemory() {
        super.onLowMemory()
        unload()
    }

    private fun unload() {
        if (lazySession.isInitialized()) session.unloadIfIdle()
    }
}
