// A running job, watched by a browser whose page is reloaded and whose connection is lost.
"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");
const { PHONE, WORLD, address, control, newVisitor, screenshot, waitFor, withVisitor } = require("./support.js");

const { lab, prepared } = WORLD;
const MAX_STREAMS = 20;
// How long a clone lasts while a page follows its job: enough for a reload and a lost connection. In seconds of the
// simulated Proxmox, which are shorter than real ones.
const WATCHED_CLONE_S = 40;

function shownLines(page) {
  return page.evaluate(() => document.getElementById("output").textContent.split("\n"));
}

async function orderAndOpen(page, name) {
  const service = await control("lab/order", { name });
  const job = await waitFor("the job", () => control("lab/last-job", { service }));
  await page.goto(address(lab.url, `/jobs/${job.id}`));
  return { service, number: job.id };
}

test("a page follows a running job across a reload and a lost connection, and shows each line once", async () => {
  await withVisitor(lab, {}, async (page) => {
    await control("lab/clone-lasts", { seconds: WATCHED_CLONE_S });
    const job = await orderAndOpen(page, "web-live");
    await page.locator("#output").getByText("TASK").waitFor();
    await page.getByText("live", { exact: true }).waitFor();
    await control("lab/clone-lasts", { seconds: 0 });
    await page.reload();
    await page.locator("#output").getByText("TASK").waitFor();
    await control("lab/proxy", { mode: "refuse" });
    await page.getByText("The connection was lost.").waitFor();
    await control("lab/proxy", { mode: "pass" });
    await page.getByText("The job has ended.").waitFor();
    await page.locator("#story .badge", { hasText: "completed" }).waitFor();
    const output = await control("lab/output", { job: job.number });
    const wanted = output.split("\n").map((line) => line.trimEnd()).filter((line) => line);
    const shown = (await shownLines(page)).map((line) => line.trimEnd()).filter((line) => line);
    assert.deepEqual(shown, wanted);
  });
});

test("lines that are printed while the connection is lost again and again are each shown once, in order", async () => {
  await withVisitor(prepared, {}, async (page) => {
    await page.goto(address(prepared.url, `/jobs/${prepared.jobs.running}`));
    await page.locator("#output").getByText("TASK [Create the VM]").waitFor();
    let printed = 0;
    for (let round = 0; round < 4; round += 1) {
      await control("prepared/print", { first: printed, count: 500 });
      printed += 500;
      await control("prepared/proxy", { mode: "refuse" });
      await control("prepared/print", { first: printed, count: 500 });
      printed += 500;
      await control("prepared/proxy", { mode: "pass" });
      await page.waitForFunction((text) => document.getElementById("output").textContent.includes(text), `line ${printed - 1}\n`);
    }
    const numbers = (await shownLines(page)).filter((line) => line.startsWith("line ")).map((line) => Number(line.slice(5)));
    assert.deepEqual(numbers, [...Array(printed).keys()]);
  });
});

test("the 21st page that follows jobs says why it shows no live output, and shows it when another browser has left", async () => {
  const visitors = [];
  try {
    await withVisitor(prepared, {}, async (page, { context }) => {
      const cookies = await context.cookies();
      const where = address(prepared.directUrl, `/jobs/${prepared.jobs.running}`);
      // A browser limits the connections of one visitor to one server, so several visitors open the streams.
      for (let number = 0; number < MAX_STREAMS; number += 1) {
        if (number % 4 === 0) visitors.push(await newVisitor());
        const visitor = visitors.at(-1);
        await visitor.context.addCookies(cookies);
        const tab = number % 4 === 0 ? visitor.page : await visitor.context.newPage();
        await tab.goto(where);
        await tab.getByText("live", { exact: true }).waitFor();
      }
      await page.goto(where);
      await page.getByText("Too many browsers follow jobs").waitFor();
      const health = await page.context().request.get(address(prepared.directUrl, "/livez"));
      assert.equal(health.status(), 200);
      await visitors.pop().context.close();
      await page.getByText("live", { exact: true }).waitFor();
    });
  } finally {
    for (const visitor of visitors) await visitor.context.close();
  }
});

test("the overview refreshes itself, keeps the focus, and says when the agent does not answer", async () => {
  await withVisitor(lab, { viewport: PHONE, colorScheme: "dark" }, async (page) => {
    await control("lab/clone-lasts", { seconds: 10 * WATCHED_CLONE_S });
    await page.goto(address(lab.url, "/"));
    const service = await control("lab/order", { name: "web-refresh" });
    const job = await waitFor("the job", () => control("lab/last-job", { service }));
    const link = page.locator(`#live a[href='jobs/${job.id}']`).first();
    await link.waitFor();
    await control("lab/clone-lasts", { seconds: 0 });
    await link.focus();
    await page.evaluate(() => { document.getElementById("live").dataset.old = "1"; });
    await page.waitForFunction(() => !document.getElementById("live").dataset.old);
    await page.waitForFunction((href) => document.activeElement.getAttribute("href") === href, `jobs/${job.id}`);
    await control("lab/proxy", { mode: "refuse" });
    await page.getByText("The agent does not answer.").waitFor();
    await screenshot(page, "no-answer-phone");
    await control("lab/proxy", { mode: "pass" });
    await page.waitForFunction(() => document.getElementById("connection").textContent === "");
    await control("lab/cancel", { job: job.id });
    await control("lab/wait", { service });
  });
});

test("a page whose session has ended leads to the login, and the login back to the page", async () => {
  await withVisitor(prepared, {}, async (page) => {
    await page.goto(address(prepared.url, "/"));
    await control("prepared/end-sessions");
    await page.getByLabel("Token").waitFor();
    await page.getByLabel("Your name").fill("Ada");
    await page.getByLabel("Token").fill(prepared.token);
    await page.getByRole("button", { name: "Log in" }).click();
    await page.getByRole("heading", { name: "Overview" }).waitFor();
    await page.goto(address(prepared.url, `/jobs/${prepared.jobs.running}`));
    await page.getByText("live", { exact: true }).waitFor();
    await control("prepared/end-sessions");
    await control("prepared/proxy", { mode: "refuse" });
    await control("prepared/proxy", { mode: "pass" });
    await page.waitForURL(/login\?next=jobs/);
  });
});
