// Adds the local time to each time, and shows the live output of a job.
"use strict";

function addLocalTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]:not([data-local])")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    element.dataset.local = "1";
    const local = moment.toLocaleString([], { dateStyle: "short", timeStyle: "medium" });
    element.title = `${element.title || element.textContent} UTC, here ${local}`;
    if (!element.classList.contains("ago")) {
      const shown = document.createElement("span");
      shown.className = "local";
      shown.textContent = moment.toLocaleTimeString([], { timeZoneName: "short" });
      element.append(" ", shown);
    }
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const zone = document.getElementById("zone");
  if (zone) zone.textContent = `, with the time in ${Intl.DateTimeFormat().resolvedOptions().timeZone} beside them`;
  addLocalTimes(document);
});
document.addEventListener("htmx:afterSettle", () => addLocalTimes(document));

// Shows the live output of a job. A reload starts at the beginning; a new connection continues after the last event.
function watchJob(box) {
  const output = document.getElementById("output");
  const state = document.getElementById("output-state");
  const run = document.getElementById("output-run");
  let last = "";
  const show = (data) => {
    if (run.textContent !== data.run) {
      if (output.textContent) output.append(`\n--- ${data.run}\n`);
      run.textContent = data.run;
    }
    const isAtEnd = output.scrollHeight - output.scrollTop - output.clientHeight < 40;
    output.append(data.text);
    if (isAtEnd) output.scrollTop = output.scrollHeight;
  };
  const open = () => {
    const source = new EventSource(box.dataset.stream + (last ? `?after=${encodeURIComponent(last)}` : ""));
    source.addEventListener("open", () => { state.textContent = "live"; });
    source.addEventListener("output", (event) => {
      last = event.lastEventId;
      show(JSON.parse(event.data));
    });
    source.addEventListener("story", (event) => {
      const story = document.getElementById("story");
      story.innerHTML = JSON.parse(event.data).html; // rendered and escaped by the server
      addLocalTimes(story);
    });
    source.addEventListener("present", (event) => {
      document.getElementById("present").textContent = JSON.parse(event.data).text;
    });
    source.addEventListener("missing", (event) => {
      const ident = JSON.parse(event.data).run;
      state.textContent = ident ? `The output of ${ident} is not on this machine: the timeline has its tasks.` : "live";
    });
    source.addEventListener("end", () => {
      source.close();
      if (state.textContent === "live") state.textContent = "The job has ended.";
    });
    source.addEventListener("error", () => {
      state.textContent = "The connection was lost. Connecting again …";
      if (source.readyState === EventSource.CLOSED) window.setTimeout(open, 10000);
    });
  };
  open();
}

document.addEventListener("DOMContentLoaded", () => {
  const box = document.getElementById("watch");
  if (box) watchJob(box);
});
