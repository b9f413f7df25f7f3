import { cronJobs } from "convex/server";

import { internal } from "./_generated/api";

const crons = cronJobs();

crons.interval("reconcile video jobs", { minutes: 1 }, internal.reconcile.run);

export default crons;
