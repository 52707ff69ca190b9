// Gives a video element something that this browser can play: the file itself, else an H.264 preview of it.

/** Play `url` from a moment. Fires `gone` on the element when neither file nor preview can be played.
 * @param {HTMLVideoElement} video @param {string} url @param {string} id @param {number} seconds */
export function playable(video, url, id, seconds) {
  const from = `#t=${seconds.toFixed(3)}`;
  let previewed = false;
  video.onerror = () => {
    if (!video.getAttribute("src")) return; // emptied on purpose
    // Only what the browser cannot decode needs a preview, not what was interrupted.
    if (previewed || (video.error?.code ?? 0) < MediaError.MEDIA_ERR_DECODE) {
      video.onerror = null;
      video.dispatchEvent(new Event("gone"));
      return;
    }
    previewed = true;
    video.dispatchEvent(new Event("converting"));
    video.src = `/v1/videos/${id}/preview${from}`;
    video.play().catch(() => {});
  };
  video.src = url + from;
}
