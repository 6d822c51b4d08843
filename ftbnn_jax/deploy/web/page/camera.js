/* Images from a camera; page.js has what is used of the page. */
"use strict";

let stream = null;

const CAMERA_ERRORS = {
  NotAllowedError: "The camera was not allowed: allow it for this page in the browser's settings.",
  NotFoundError: "There is no camera.",
  NotReadableError: "The camera cannot be used now: another program may have it.",
};

async function startCamera() {
  if (stream) return stopCamera();
  if (!navigator.mediaDevices) return complain("Browsers give a camera to pages of https:// or localhost alone.");
  at("start").disabled = true;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    at("video").srcObject = stream;
    await at("video").play();
    at("start").textContent = "Stop the camera";
    complain("");
    if (source() === "camera") requestAnimationFrame(frame);
    else stopCamera();
  } catch (error) {
    stopCamera();
    complain(CAMERA_ERRORS[error.name] || `The camera cannot be used: ${error.message}`);
  } finally {
    at("start").disabled = false;
  }
}

async function frame() {
  if (!stream) return;
  const video = at("video"), { videoWidth: width, videoHeight: height } = video;
  if (width) await classify(() => ftbnnImages.fromDrawable(video, width, height, about.rule.channels));
  requestAnimationFrame(frame);
}

function stopCamera() {
  for (const track of stream ? stream.getTracks() : []) track.stop();
  stream = at("video").srcObject = null;
  at("start").textContent = "Start the camera";
}
