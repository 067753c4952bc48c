package dev.cabochon.demo

import android.app.Notification
import android.app.NotificationManager
import android.app.PendingIntent
import android.content.Context
import android.content.Intent
import android.graphics.drawable.Icon
import android.os.IBinder
import android.os.PowerManager
import dev.cabochon.core.Activity
import dev.cabochon.core.DemoSession
import dev.cabochon.core.ScreenState
import dev.cabochon.core.TransferProgress
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.cancel
import kotlinx.coroutines.delay
import kotlinx.coroutines.flow.takeWhile
import kotlinx.coroutines.launch

/**
 * Keeps the process, and the phone awake, while a model is downloaded, whether or not there is a screen, and shows how
 * far it is. The download itself is the session's.
 */
class DownloadService : TimedService() {
    private val session: DemoSession get() = (application as DemoApplication).session
    private val scope = CoroutineScope(Job() + mainDispatcher)
    private val awake: PowerManager.WakeLock by lazy {
        val power = getSystemService(Context.POWER_SERVICE) as PowerManager
        power.newWakeLock(PowerManager.PARTIAL_WAKE_LOCK, "cabochon:download").apply { setReferenceCounted(false) }
    }
    private var watching: Job? = null
    private var newestStart = 0

    override fun onBind(intent: Intent?): IBinder? = null

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        if (intent?.action == CANCEL) {
            if (session.state.value.isDownloading) session.cancel()
            if (watching == null) stopSelf(startId)
            return START_NOT_STICKY
        }
        newestStart = startId
        // Before anything else: the system ends an app whose service is late with it.
        startForeground(NOTIFICATION, notification(null))
        awake.acquire(LONGEST_MILLISECONDS)
        intent?.getStringExtra(ADDRESS)?.let(session::download)
        if (watching == null) watching = scope.launch { watch() }
        // Not started again by the system, which does not let a service come to the foreground from behind.
        return START_NOT_STICKY
    }

    override fun onDestroy() {
        scope.cancel()
        awake.release()
        super.onDestroy()
    }

    /** The system's hours are over: what came stays, and the next start of the app goes on. */
    override fun timeIsOver() {
        session.pauseDownload()
        stopSelf()
    }

    /** Ends with the download; between two notifications the state may change as often as it likes. */
    private suspend fun watch() {
        val notifications = getSystemService(Context.NOTIFICATION_SERVICE) as NotificationManager
        session.state.takeWhile { it.isDownloading }.collect { state ->
            notifications.notify(NOTIFICATION, notification(state.progress))
            delay(PAUSE_MILLISECONDS)
        }
        watching = null
        stopForeground(true)
        stopSelf(newestStart) // which does nothing where another download was asked for meanwhile
    }

    private fun notification(progress: TransferProgress?): Notification {
        val screen = PendingIntent.getActivity(this, 0, Intent(this, MainActivity::class.java), PendingIntent.FLAG_IMMUTABLE)
        val cancelling = Intent(this, DownloadService::class.java).setAction(CANCEL)
        val cancel = PendingIntent.getService(this, 1, cancelling, PendingIntent.FLAG_IMMUTABLE)
        val icon = Icon.createWithResource(this, android.R.drawable.ic_menu_close_clear_cancel)
        return newNotification(this, CHANNEL, getString(R.string.downloads))
            .setSmallIcon(android.R.drawable.stat_sys_download)
            .setContentTitle(getString(R.string.downloading))
            .setContentText(progress?.toString() ?: "")
            .setProgress(100, progress?.percent ?: 0, progress == null)
            .setOngoing(true)
            .setOnlyAlertOnce(true)
            .setContentIntent(screen)
            .addAction(Notification.Action.Builder(icon, getString(R.string.cancel), cancel).build())
            .build()
    }

    companion object {
        private const val ADDRESS = "address"
        private const val CANCEL = "dev.cabochon.demo.CANCEL"
        private const val CHANNEL = "downloads"
        private const val NOTIFICATION = 1
        private const val PAUSE_MILLISECONDS = 1_000L

        /** What Android 15 allows a service of this kind in a day. */
        private const val LONGEST_MILLISECONDS = 6 * 60 * 60 * 1_000L

        /** Downloads from an address; called while the screen is shown, which is when services may be started. */
        fun start(context: Context, address: String) {
            context.startService(Intent(context, DownloadService::class.java).putExtra(ADDRESS, address))
        }
    }
}

private val ScreenState.isDownloading: Boolean get() = activity == Activity.DOWNLOADING
