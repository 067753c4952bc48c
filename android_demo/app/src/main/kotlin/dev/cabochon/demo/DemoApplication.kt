package dev.cabochon.demo

import android.app.Application

/** Holds what outlives the activity, which is made anew when the phone is turned. */
class DemoApplication : Application() {
    val session: DemoSession by lazy { DemoSession(ModelStore(this), cacheDir) }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        // From TRIM_MEMORY_COMPLETE on the process would be killed next; while in use, only a critical shortage counts.
        if (level >= TRIM_MEMORY_COMPLETE || level == TRIM_MEMORY_RUNNING_CRITICAL) session.unloadIfIdle()
    }

    @Deprecated("Of systems that know no levels")
    override fun onLowMemory() {
        super.onLowMemory()
        session.unloadIfIdle()
    }
}
