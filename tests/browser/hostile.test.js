// Hostile texts of customers, guests and other servers: the pages show them as text. No script in them runs, and the
// browser sends no request to another machine.
"use strict";

const assert = require("node:assert/strict");
const fs = require("node:fs");
const { test } = require("node:test");
const { NET_LOG, WORLD, address, closeBrowser, control, openBrowser, waitFor, withVisitor } = require("./support.js");

const SITE = WORLD.prepared;
const { jobs } = SITE;
const PLACES = [
  "/", "/jobs", "/vms", "/executors", "/settings", "/audit", "/doctor", `/jobs/${jobs.running}`, `/jobs/${jobs.completed}`,
  `/jobs/${jobs.failed}`, `/jobs/${jobs.pending}`,
];
// The settings come from the operator. The doctor shows hostile texts only after its checks: a test below runs them.
const WITHOUT_HOSTILE_TEXT = ["/settings", "/doctor"];

async function assertHarmless(page, visitor, where) {
  assert.equal(await page.evaluate(() => globalThis.hacked), undefined, where);
  const foreign = visitor.requests.filter((url) => !url.startsWith("http://127.0.0.1:") && !url.startsWith("https://127.0.0.1:"));
  assert.deepEqual(foreign, [], where);
  const injected = await page.evaluate(() => {
    const inPage = [...document.querySelectorAll("main img, main script, main iframe, main [onload], main [onerror], main [href^='javascript'], #story [hx-get]")];
    return inPage.map((element) => element.outerHTML);
  });
  assert.deepEqual(injected, [], where);
  assert.ok(!(await page.content()).match(/[\u001b\u202e]/), where);
}

test("every page shows hostile texts as plain text", async () => {
  await withVisitor(SITE, {}, async (page, visitor) => {
    for (const where of PLACES) {
      await page.goto(address(SITE.url, where), { waitUntil: "load" });
      if (!WITHOUT_HOSTILE_TEXT.includes(where)) {
        await page.getByText("<script>window.hacked=1</script>").first().waitFor();
      }
      await assertHarmless(page, visitor, where);
    }
  });
});

test("the live output and the timeline of a job show hostile texts as plain text", async () => {
  await withVisitor(SITE, {}, async (page, visitor) => {
    await page.goto(address(SITE.url, `/jobs/${jobs.running}`));
    await page.locator("#output").getByText("<script>window.hacked=1</script>").waitFor();
    await control("prepared/story", { text: `resizing ${SITE.hostile}` });
    await page.locator("#story").getByText(/resizing.*<script>/).waitFor();
    await assertHarmless(page, visitor, "a watched job");
  });
});

test("hostile texts that a visitor types are shown as plain text", async () => {
  const typed = encodeURIComponent(SITE.hostile);
  await withVisitor(SITE, {}, async (page, visitor) => {
    for (const where of [`/jobs?q=${typed}&action=${typed}&status=${typed}`, `/audit?subject=${typed}&verb=${typed}`, `/vms?state=${typed}`]) {
      await page.goto(address(SITE.url, where));
      await assertHarmless(page, visitor, where);
    }
  });
  await withVisitor(SITE, { name: "" }, async (page, visitor) => {
    await page.goto(address(SITE.url, `/login?next=${typed}`));
    await page.getByLabel("Your name").fill(SITE.hostile.slice(0, 60));
    await page.getByLabel("Token").fill(`wrong ${SITE.hostile}`);
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByRole("alert").waitFor();
    await assertHarmless(page, visitor, "login");
  });
});

test("the checks of the doctor show the answers of a hostile server as plain text", async () => {
  await withVisitor(SITE, {}, async (page, visitor) => {
    await page.goto(address(SITE.url, "/doctor"));
    await page.getByRole("button", { name: "Run the checks" }).click();
    await page.getByText("Checked").waitFor();
    await page.getByText("<script>window.hacked=1</script>").first().waitFor();
    await assertHarmless(page, visitor, "doctor");
  });
});

test("the browser's own log has no request to another machine", async () => {
  await closeBrowser(); // the log is complete when the browser has ended
  try {
    const log = await waitFor("the log of the browser", () => {
      try {
        return JSON.parse(fs.readFileSync(NET_LOG, "utf8"));
      } catch {
        return null;
      }
    });
    const started = log.events.filter((event) => event.params?.url);
    const ours = started.filter((event) => /^https?:\/\/127\.0\.0\.1:/.test(event.params.initiator || ""));
    assert.ok(ours.some((event) => event.params.url.includes("/events")), "the log has our requests");
    const foreign = ours.map((event) => event.params.url).filter((url) => !/^\w+:\/\/127\.0\.0\.1:/.test(url));
    assert.deepEqual([...new Set(foreign)], []);
    // The browser has not looked up the host of the hostile texts, either. Other hosts are not checked: the browser's own
    // services look up servers of its manufacturer.
    const hosts = log.events.map((event) => event.params?.host || event.params?.hostname || "").join(" ");
    assert.ok(!hosts.includes("evil"), "a host of a hostile text was looked up");
    assert.ok(!started.some((event) => event.params.url.startsWith("//evil") || new URL(event.params.url).host.includes("evil")));
  } finally {
    fs.rmSync(NET_LOG, { force: true });
    await openBrowser();
  }
});
