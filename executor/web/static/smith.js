// Adds the local time to each time, keeps the refreshed parts of a page usable, and shows the live output of a job.
"use strict";

const REFUSED = [401, 403]; // what the agent answers without a session
const RETRY_AFTER_MS = 10000;

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

// --- parts that htmx refreshes ------------------------------------------------------------------------------------

let refreshedAt = new Date();

function showConnection(text) {
  const box = document.getElementById("connection");
  if (!box || box.textContent === text) return;
  box.textContent = text;
  document.body.classList.toggle("stale", Boolean(text));
}

function noteNotRefreshed() {
  showConnection(`The agent does not answer. This page shows its state at ${refreshedAt.toLocaleTimeString([], { timeZoneName: "short" })}.`);
}

// Without this header, the agent would answer as it answers programs.
document.addEventListener("htmx:configRequest", (event) => { event.detail.headers.Accept = "text/html"; });
// A page in the background is not visible: it is refreshed when it comes to the front.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.detail.elt.id === "live") event.preventDefault();
});
document.addEventListener("htmx:sendError", noteNotRefreshed);
document.addEventListener("htmx:responseError", noteNotRefreshed);
document.addEventListener("htmx:timeout", noteNotRefreshed);

// A refresh replaces the focused link. The link that leads to the same page gets the focus.
let focused = null;
document.addEventListener("htmx:beforeSwap", (event) => {
  const target = event.detail.target;
  if (event.detail.xhr.status >= 400) return;
  if (!new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html").getElementById(target.id)) {
    event.detail.shouldSwap = false; // the login: the session has ended
    window.location.reload();
    return;
  }
  const active = document.activeElement;
  const isInside = active && active !== target && target.contains(active) && !active.id;
  focused = isInside ? { href: active.getAttribute("href"), text: active.textContent } : null;
});
document.addEventListener("htmx:afterSettle", () => {
  refreshedAt = new Date();
  showConnection("");
  addLocalTimes(document);
  if (!focused) return;
  const links = [...document.querySelectorAll("main a[href]")];
  const same = links.filter((link) => link.getAttribute("href") === focused.href);
  const link = same.find((candidate) => candidate.textContent === focused.text) || same[0];
  if (link) link.focus({ preventScroll: true });
  focused = null;
});

// --- the live output of a job -------------------------------------------------------------------------------------

// A reload starts at the beginning; a new connection continues after the last event.
class JobWatch {
  constructor(box) {
    this.url = box.dataset.stream;
    this.output = document.getElementById("output");
    this.state = document.getElementById("output-state");
    this.run = document.getElementById("output-run");
    this.last = "";
    this.text = "live";
  }

  open() {
    const source = new EventSource(this.url + (this.last ? `?after=${encodeURIComponent(this.last)}` : ""));
    source.addEventListener("open", () => this.say(this.text));
    source.addEventListener("output", (event) => {
      this.last = event.lastEventId;
      this.show(JSON.parse(event.data));
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
      this.text = ident ? `The output of ${ident} is not on this machine: the timeline has its tasks.` : "live";
      this.say(this.text);
    });
    source.addEventListener("end", () => {
      source.close();
      if (this.text === "live") this.say("The job has ended.");
    });
    source.addEventListener("error", () => {
      this.say("The connection was lost. Connecting again …");
      if (source.readyState === EventSource.CLOSED) this.explain();
    });
  }

  // The browser does not say why the agent has refused the stream, so it is asked again without reading events.
  async explain() {
    try {
      const answer = await fetch(this.url, { method: "HEAD", redirect: "manual" });
      if (answer.type === "opaqueredirect" || REFUSED.includes(answer.status)) return window.location.reload();
      if (answer.status === 503) this.say("Too many browsers follow jobs at this agent. Trying again …");
    } catch {
      // The agent cannot be reached, which is shown already.
    }
    window.setTimeout(() => this.open(), RETRY_AFTER_MS);
    return undefined;
  }

  say(text) {
    if (this.state.textContent !== text) this.state.textContent = text;
  }

  show(data) {
    if (this.run.textContent !== data.run) {
      if (this.output.textContent) this.output.append(`\n--- ${data.run}\n`);
      this.run.textContent = data.run;
    }
    const isAtEnd = this.output.scrollHeight - this.output.scrollTop - this.output.clientHeight < 40;
    this.output.append(data.text);
    if (isAtEnd) this.output.scrollTop = this.output.scrollHeight;
  }
}

document.addEventListener("DOMContentLoaded", () => {
  const box = document.getElementById("watch");
  if (box) new JobWatch(box).open();
});
