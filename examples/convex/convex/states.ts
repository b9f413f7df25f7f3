/** How a row may change. A job goes forward only, and its end is final. */

import type { Infer } from "convex/values";

import type { Doc } from "./_generated/dataModel";
import type { components } from "./videoApi/schema";
import type { news, status } from "./schema";

export type Row = Doc<"videoJobs">;
export type Status = Infer<typeof status>;
export type News = Infer<typeof news>;

const RANK: Record<Status, number> = { uploading: 0, queued: 1, processing: 2, completed: 3, failed: 3 };

export const CANCELLED = "Cancelled";

export function isFinal(status: Status): boolean {
  return RANK[status] === RANK.completed;
}

/** What to patch a row with on such news; null: they are old. */
export function change(before: Status, told: Omit<News, "externalJobId">, now: number): Partial<Row> | null {
  if (RANK[told.status] <= RANK[before]) return null;
  if (!isFinal(told.status)) return { status: told.status };
  return told.status === "completed"
    ? { status: "completed", completedAt: now, ...(told.outputVideoUrl && { outputVideoUrl: told.outputVideoUrl }) }
    : { status: "failed", completedAt: now, errorMessage: told.errorMessage || "It failed" };
}

/** The service's word for a state in those of the table, which knows no `cancelled`. */
export function ours(theirs: components["schemas"]["Status"]): Status {
  return theirs === "cancelled" ? "failed" : theirs;
}

/** A job as the API shows it, or as a `webhook_url` is told of it, which has other names for two things. */
export interface Seen {
  job_id: string;
  status: components["schemas"]["Status"];
  result_url?: string | null;
  error_message?: string | null;
  video_url?: string | null;
  error?: string | null;
}

export function newsOf(job: Seen): News {
  const url = job.result_url ?? job.video_url;
  const errorMessage = job.status === "cancelled" ? CANCELLED : (job.error_message ?? job.error);
  return {
    externalJobId: job.job_id,
    status: ours(job.status),
    ...(url && { outputVideoUrl: url }),
    ...(errorMessage && { errorMessage }),
  };
}
