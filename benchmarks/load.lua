-- wrk's side of benchmarks/load.py: searches for the texts of a file, one a line, each thread from another place of it.
-- Prints one JSON line at the end. Arguments: FILE [API key]
local threads = 0

function setup(thread)
  thread:set("number", threads)
  threads = threads + 1
end

function init(args)
  bodies, at = {}, number * 7919
  for line in io.lines(args[1]) do
    bodies[#bodies + 1] = line
  end
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  if args[2] then
    wrk.headers["Authorization"] = "Bearer " .. args[2]
  end
end

function request()
  at = at + 1
  return wrk.format(nil, "/v1/search", nil, bodies[at % #bodies + 1])
end

function done(summary, latency, requests)
  local errors = summary.errors
  print(string.format(
    '{"requests": %d, "seconds": %.3f, "p50_ms": %.2f, "p95_ms": %.2f, "p99_ms": %.2f, "max_ms": %.2f, ' ..
      '"status_errors": %d, "timeouts": %d, "socket_errors": %d}',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, latency.max / 1e3, errors.status, errors.timeout,
    errors.connect + errors.read + errors.write))
end
