-- wrk's side of `benchmarks/load.py --refusals`: as many threads as connections, so that each thread knows to which of
-- its requests an answer belongs, and the latencies of answers and of refusals can be told apart.
-- Every client asks again at once, whatever it was told. Prints one JSON line at the end. Argument: FILE
local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } emcl_time;
  int clock_gettime(int clock, emcl_time *time);
]]
local MONOTONIC, threads, started = 1, {}, 0
local time = ffi.new("emcl_time")

local function now_ms()
  ffi.C.clock_gettime(MONOTONIC, time)
  return tonumber(time.seconds) * 1e3 + tonumber(time.nanoseconds) / 1e6
end

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

function init(args)
  bodies, at = {}, number * 7919
  for line in io.lines(args[1]) do
    bodies[#bodies + 1] = line
  end
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  answered, refused, others, untold = {}, {}, 0, 0
  found = ""
end

function request()
  at = at + 1
  started = now_ms()
  return wrk.format(nil, "/v1/search", nil, bodies[at % #bodies + 1])
end

function response(status, headers)
  local taken = now_ms() - started
  if status == 200 then
    table.insert(answered, string.format("%.2f", taken))
  elseif status == 503 or status == 429 then
    table.insert(refused, string.format("%.2f", taken))
    if not (headers["Retry-After"] or headers["retry-after"]) then
      untold = untold + 1
    end
  else
    others = others + 1
  end
  -- a thread's state can be asked only for plain values in the end, and making them must not cost more each time
  if #answered + #refused >= 500 then
    flush()
  end
end

function flush()
  found = found .. table.concat(answered, ",") .. ";" .. table.concat(refused, ",") .. "|"
  answered, refused = {}, {}
end

function done(summary)
  local parts, wrong, silent = {}, 0, 0
  for _, thread in ipairs(threads) do
    local rest = table.concat(thread:get("answered"), ",") .. ";" .. table.concat(thread:get("refused"), ",")
    table.insert(parts, thread:get("found") .. rest)
    wrong, silent = wrong + thread:get("others"), silent + thread:get("untold")
  end
  local errors = summary.errors
  print(string.format(
    '{"seconds": %.3f, "latencies": "%s", "other_answers": %d, "without_retry_after": %d, ' ..
      '"not_connected": %d, "cut": %d, "timeouts": %d}',
    summary.duration / 1e6, table.concat(parts, "|"), wrong, silent,
    errors.connect, errors.read + errors.write, errors.timeout))
end
