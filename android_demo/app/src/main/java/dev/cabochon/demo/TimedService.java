package dev.cabochon.demo;

import android.app.Service;

/**
 * A service that hears when the system's hours for it are over, from Android 15 on.
 *
 * <p>In Java, where a method may override one that only later systems have: Kotlin wants the word `override` against
 * current classes, and refuses it against Android 6's.
 */
public abstract class TimedService extends Service {
    /** It has to end within seconds. */
    protected abstract void timeIsOver();

    public void onTimeout(int startId, int foregroundServiceType) {
        timeIsOver();
    }
}
