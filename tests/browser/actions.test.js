// The changes that operators make with the pages: each needs a session, a confirmation and a form of our own pages.
"use strict";

const assert = require("node:assert/strict");
const { test } = require("node:test");
const { WORLD, address, control, screenshot, waitFor, withVisitor } = require("./support.js");

const { lab, prepared } = WORLD;
const ACTIONS = ["retry", "cancel", "pause", "resume", "repair", "drain", "resume-node", "doctor"];

async function statusOf(service) {
  const job = await control("lab/last-job", { service });
  return job && job.status;
}

test("without a session, no action is offered or accepted", async () => {
  const before = await control("prepared/audit");
  await withVisitor(prepared, { name: "" }, async (page, { context }) => {
    for (const where of ["/executors", `/jobs/${prepared.jobs.pending}`, "/vms", "/doctor"]) {
      await page.goto(address(prepared.url, where));
      await page.getByRole("heading", { name: "Log in" }).waitFor();
      await page.goto(address(prepared.localUrl, where));
      assert.equal(await page.locator("form[action*=actions]").count(), 0, where);
    }
    for (const url of [prepared.url, prepared.localUrl]) {
      for (const action of ACTIONS) {
        const answer = await context.request.post(address(url, `/actions/${action}`), {
          form: { job: String(prepared.jobs.pending), node: "boot-1", reason: "x", confirmed: "yes" },
          headers: { Origin: new URL(url).origin, Accept: "text/html" },
          maxRedirects: 0,
        });
        assert.ok([303, 401, 403].includes(answer.status()), `${action}: ${answer.status()}`);
      }
    }
  });
  assert.deepEqual(await control("prepared/audit"), before);
});

test("a form of another site is refused, although the browser has a session", async () => {
  const before = await control("prepared/audit");
  await withVisitor(prepared, {}, async (page) => {
    await page.goto(address(prepared.url, "/executors"));
    const token = await page.locator("input[name=form_token]").first().inputValue();
    await page.goto(`${WORLD.control}/foreign/${token}/${prepared.url}/actions/pause`);
    await page.getByRole("button", { name: "Win a prize" }).click();
    await page.getByText("the form was sent by another site").waitFor();
  });
  assert.deepEqual(await control("prepared/audit"), before);
});

test("nothing happens without a confirmation", async () => {
  await withVisitor(prepared, {}, async (page) => {
    const before = await control("prepared/audit");
    await page.goto(address(prepared.url, `/jobs/${prepared.jobs.pending}`));
    await page.getByRole("button", { name: "Cancel the job" }).click();
    assert.ok(await page.locator("form[action*=cancel] input[name=confirmed]:invalid").count());
    assert.deepEqual(await control("prepared/audit"), before);
  });
});

test("retry, cancel and adopt do what they say, and the audit names the user of the session", async () => {
  const { pending } = prepared.jobs;
  await control("prepared/wait", { number: pending });
  await withVisitor(prepared, { name: "Grace" }, async (page) => {
    await page.goto(address(prepared.url, `/jobs/${pending}`));
    await page.getByLabel("Skip the wait").check();
    await page.getByRole("button", { name: "Retry" }).click();
    await page.waitForURL(/jobs\/\d+$/);
    assert.equal((await control("prepared/job", { number: pending })).waits, false);
    await page.getByLabel("Reason, for the audit").fill("not needed");
    await page.getByLabel("End this job").check();
    await page.getByRole("button", { name: "Cancel the job" }).click();
    await page.locator("#story .badge", { hasText: "failed" }).waitFor();
    assert.equal((await control("prepared/job", { number: pending })).error, "CANCELLED");
    await page.goto(address(prepared.url, "/vms"));
    await page.getByLabel("Only our mapping changes").check();
    await page.getByRole("button", { name: "adopt" }).click();
    await page.locator("td", { hasText: "100555" }).nth(1).waitFor();
    await page.goto(address(prepared.url, "/audit"));
    await page.getByText("not needed").waitFor();
  });
  const auditedActions = (await control("prepared/audit")).filter(([who]) => who === "Grace (web)").map((entry) => entry[1]);
  assert.deepEqual(auditedActions, ["adopt", "cancel", "retry"]);
});

test("a paused agent claims no job until it is resumed, and so does a drained agent", async () => {
  await withVisitor(lab, { name: "Grace" }, async (page) => {
    const steps = [
      { open: null, button: "Pause", resume: "Resume", confirm: "All agents claim" },
      { open: /^Drain /, button: /^Drain /, resume: /^Resume /, confirm: "claims" },
    ];
    for (const { open, button, resume, confirm } of steps) {
      await page.goto(address(lab.url, "/executors"));
      if (open) await page.locator("summary", { hasText: open }).click();
      const form = page.locator("form", { has: page.getByRole("button", { name: button }) });
      await form.getByLabel("Reason").fill("new kernel");
      await form.getByLabel(open ? "It claims no more jobs" : confirm).check();
      await form.getByRole("button").click();
      await page.getByText("new kernel").waitFor();
      await page.goto(address(lab.url, "/executors"));
      await screenshot(page, open ? "drained" : "paused");
      if (open) await page.locator(".badge", { hasText: "paused" }).waitFor();
      await waitFor("the agent to know", async () => {
        const ready = await page.context().request.get(address(lab.url, "/readyz"));
        return (await ready.text()).includes("paused") || open;
      });
      const service = await control("lab/order", { name: `web-${open ? "drain" : "pause"}` });
      await waitFor("the poll", () => statusOf(service));
      if (!open) assert.equal(await statusOf(service), "pending");
      await page.goto(address(lab.url, "/executors"));
      const resumeForm = page.locator("form", { has: page.getByRole("button", { name: resume }) });
      await resumeForm.getByLabel(confirm).check();
      await resumeForm.getByRole("button").click();
      await waitFor("the job", async () => (await statusOf(service)) === "completed");
    }
  });
  const auditedActions = (await control("lab/audit")).filter(([who]) => who === "Grace (web)").map((entry) => entry[1]);
  assert.deepEqual(auditedActions, ["resume", "drain", "resume", "pause"]);
});

test("a running job of a real agent is cancelled", async () => {
  await withVisitor(lab, {}, async (page) => {
    await control("lab/clone-lasts", { seconds: 400 });
    const service = await control("lab/order", { name: "web-cancel" });
    const job = await waitFor("the job", async () => {
      const found = await control("lab/last-job", { service });
      return found && found.status === "processing" && found;
    });
    await page.goto(address(lab.url, `/jobs/${job.id}`));
    await page.getByLabel("End this job").check();
    await page.getByRole("button", { name: "Cancel the job" }).click();
    await page.locator("#story .badge", { hasText: "failed" }).waitFor();
    assert.equal((await control("lab/last-job", { service })).error, "CANCELLED");
    await control("lab/clone-lasts", { seconds: 0 });
  });
});
