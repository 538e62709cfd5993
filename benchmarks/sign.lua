-- wrk's part: each request has the next CSR of a file, and each answer must be a certificate.
-- Arguments behind --: name=value, see load.py.

local ffi = require("ffi")
ffi.cdef [[
  typedef struct { long seconds; long nanoseconds; } moment;
  int clock_gettime(int clock, moment *now);
]]
local CLOCK_MONOTONIC = 1
local now = ffi.new("moment")

local function clock()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, now)
  return tonumber(now.seconds) + tonumber(now.nanoseconds) / 1e9
end

local csrs, tokens, settings
-- Read by `done`, from another Lua state. `asked` counts what was given to wrk, `began` and `ended` frame the answers.
asked, signed, wrong, began, ended, exhausted, first_wrong = 0, 0, 0, 0, 0, 0, ""

function init(args)
  settings = {}
  for _, argument in ipairs(args) do
    local name, value = argument:match("^(%w+)=(.*)$")
    settings[name] = value
  end
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  if settings.token ~= "" then wrk.headers["X-Auth-Token"] = settings.token end
  if settings.close == "yes" then wrk.headers["Connection"] = "close" end
  csrs = assert(io.open(settings.csrs))
  if settings.tokens ~= "" then tokens = assert(io.open(settings.tokens)) end
  for _ = 1, tonumber(settings.skip) do
    csrs:read("*l")
    if tokens then tokens:read("*l") end
  end
end

function request()
  local csr = csrs:read("*l")
  if csr == nil then -- never one a second time: this run ends here
    exhausted = 1
    wrk.thread:stop()
    return wrk.format("GET", "/")
  end
  if asked == 1 then began = clock() end -- the very first one wrk asks for is a trial, which it does not send
  asked = asked + 1
  local one_time = tokens and tokens:read("*l") or ""
  return wrk.format(nil, settings.path, nil, settings.before .. csr .. settings.between .. one_time .. settings.after)
end

function response(status, headers, body)
  if exhausted == 1 then return end
  if status == tonumber(settings.status) and body:find("-----BEGIN CERTIFICATE-----", 1, true) then
    signed = signed + 1
    ended = clock()
  else
    wrong = wrong + 1
    if wrong == 1 then first_wrong = status .. " " .. body:sub(1, 300) end
  end
end

local threads = {}

function setup(thread)
  table.insert(threads, thread)
end

function done(summary, latency)
  local only = threads[1]
  local errors = summary.errors
  for _, name in ipairs({"asked", "signed", "wrong", "began", "ended", "exhausted"}) do
    print(("told %s %.6f"):format(name, only:get(name)))
  end
  print(("told broken %d"):format(errors.connect + errors.read + errors.write + errors.timeout))
  print(("told p50_us %.1f"):format(latency:percentile(50)))
  print(("told p99_us %.1f"):format(latency:percentile(99)))
  print("first wrong: " .. only:get("first_wrong"):gsub("%c", " "))
end
