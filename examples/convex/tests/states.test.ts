import { expect, test } from "vitest";

import { change, isFinal, type Status } from "../convex/states";

const ALL: Status[] = ["uploading", "queued", "processing", "completed", "failed"];

test("a row goes forward only, and never from its end", () => {
  for (const before of ALL) {
    for (const status of ALL) {
      const forward = !isFinal(before) && ALL.indexOf(status) > ALL.indexOf(before);
      expect(change(before, { status }, 7)?.status, `${before} → ${status}`).toBe(forward ? status : undefined);
      expect(change(before, { status }, 7)?.completedAt).toBe(forward && isFinal(status) ? 7 : undefined);
    }
  }
});
