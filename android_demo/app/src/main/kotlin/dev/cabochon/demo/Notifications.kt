package dev.cabochon.demo

import android.app.Notification
import android.app.NotificationManager
import android.content.Context
import android.os.Build

/**
 * A notification of a channel, which Android 8 and newer ask for.
 *
 * Android 6's classes, which the build without Gradle compiles against, have no channels: public methods of later
 * systems are called by their names, as nowhere else in the app.
 */
@Suppress("DEPRECATION")
fun newNotification(context: Context, channel: String, title: String): Notification.Builder {
    val builder = Notification.Builder(context)
    if (Build.VERSION.SDK_INT < FIRST_WITH_CHANNELS) return builder
    val type = Class.forName("android.app.NotificationChannel")
    val text = CharSequence::class.java
    val made = type.getConstructor(String::class.java, text, Int::class.javaPrimitiveType).newInstance(channel, title, QUIET)
    val notifications = context.getSystemService(Context.NOTIFICATION_SERVICE)
    NotificationManager::class.java.getMethod("createNotificationChannel", type).invoke(notifications, made)
    Notification.Builder::class.java.getMethod("setChannelId", String::class.java).invoke(builder, channel)
    return builder
}

private const val FIRST_WITH_CHANNELS = 26

/** NotificationManager.IMPORTANCE_LOW. */
private const val QUIET = 2
