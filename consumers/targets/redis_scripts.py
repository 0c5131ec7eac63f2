"""The Lua scripts of a Redis target beside the batch's: each runs alone in its server, or not at all."""

from __future__ import annotations

from hashlib import sha1

from consumers.targets.redis_layout import ONE_SERVER, Space
from consumers.targets.redis_lua import COMMON, JSON

# ARGV: checkpoint's field and where it must be, the table's name, the floor. -1: the partition is lost;
# 0: a higher floor is there; 1: rows at or below this one are to go.
RAISE_FLOOR = (
    COMMON
    + """
local stand = call('HGET', '_tailrace:checkpoints', ARGV[1])
if not stand or string.match(stand, '^%d+') ~= ARGV[2] then return -1 end
local floor = call('HGET', '_tailrace:floors', ARGV[3])
if floor and older(ARGV[4], floor) then return 0 end
call('HSET', '_tailrace:floors', ARGV[3], ARGV[4])
return 1
"""
)

# ARGV: layout, prefix, rows, gone, rereads, floor, cursor, count, packed names of records that stay,
# and under `delete: soft` the column and its time (as JSON where rows are). One step of a truncate; the next
# cursor.
TRUNCATE = (
    COMMON
    + JSON
    + """
local soft, kept = #ARGV == 11, names_in(ARGV[9])
local function mark(key)
  if call('TYPE', key).ok ~= TYPES[ARGV[1]] then return end
  if ARGV[1] == 'hash' then
    call('HSETNX', key, ARGV[10], ARGV[11])
    return
  end
  local text = merged(call('GET', key), {ARGV[10], ARGV[11]}, true)
  if text then
    local left_ms = call('PTTL', key)
    call('SET', key, text)
    if left_ms > 0 then call('PEXPIRE', key, left_ms) end
  end
end
local as, prefix, rows, gone, rereads, floor = unpack(ARGV, 1, 6)
local found = call('HSCAN', rows, ARGV[7], 'COUNT', ARGV[8])
local records = found[2]
for i = 1, #records, 2 do
  local field, record = records[i], records[i + 1]
  if not older(floor, record) and not kept[field] then
    local key, member = place_of(as, prefix, field)
    if soft and #record == 20 then
      mark(key)
    else
      if #record == 20 then remove(as, key, member) end
      call('HDEL', rows, field)
      call('ZREM', gone, field)
    end
    local noted = call('HGET', rereads, field)
    if noted and not older(floor, string.sub(noted, 1, 20)) then call('HDEL', rereads, field) end
  end
end
return found[1]
"""
)

# ARGV: layout, prefix, rows, gone, floor, cursor, count, names, the column and its time as above. One step:
# the next cursor, and how many rows a truncate would take, without those that have expired or are marked.
COUNT_BELOW = (
    COMMON
    + JSON
    + """
local as, prefix, rows, gone, floor = unpack(ARGV, 1, 5)
local function marked(key)
  if #ARGV < 10 then return false end
  if as == 'hash' then return call('HGET', key, ARGV[9]) ~= false end
  local text = call('GET', key)
  return text and merged(text, {ARGV[9], ARGV[10]}, true) == text
end
local found = call('HSCAN', rows, ARGV[6], 'COUNT', ARGV[7])
local records, count, now, kept = found[2], 0, now_us(), names_in(ARGV[8])
for i = 1, #records, 2 do
  local field, record = records[i], records[i + 1]
  if #record == 20 and not older(floor, record) and not kept[field] then
    local at = call('ZSCORE', gone, field)
    if not (at and tonumber(at) <= now) and not marked(place_of(as, prefix, field)) then count = count + 1 end
  end
end
return {found[1], count}
"""
)

# ARGV: rereads, floor, cursor, count. What was noted of rows that were never there.
FORGET_REREADS = (
    COMMON
    + """
local found = call('HSCAN', ARGV[1], ARGV[3], 'COUNT', ARGV[4])
for i = 1, #found[2], 2 do
  if not older(ARGV[2], string.sub(found[2][i + 1], 1, 20)) then call('HDEL', ARGV[1], found[2][i]) end
end
return found[1]
"""
)

# ARGV: layout, prefix, rows, gone, microseconds to keep, count. How many records were looked at.
PURGE = (
    COMMON
    + """
local as, prefix, rows, gone = unpack(ARGV, 1, 4)
local before = string.format('%.0f', now_us() - tonumber(ARGV[5]))
local fields = call('ZRANGEBYSCORE', gone, '-inf', before, 'LIMIT', 0, ARGV[6])
for _, field in ipairs(fields) do
  local record = call('HGET', rows, field)
  local key = place_of(as, prefix, field)
  if record and (#record > 20 or call('EXISTS', key) == 0) then call('HDEL', rows, field) end
  call('ZREM', gone, field)
end
return #fields
"""
)

# ARGV: rows, gone.
COUNT = (
    COMMON
    + """
return call('HLEN', ARGV[1]) - call('ZCOUNT', ARGV[2], '-inf', string.format('%.0f', now_us()))
"""
)


class Script:
    """Its text and the name by which the server keeps it."""

    __slots__ = ("sha", "text")

    def __init__(self, text: str, space: Space = ONE_SERVER) -> None:
        """`space`: where the names that begin with '_tailrace: are."""
        self.text = text.replace("'_tailrace:", f"'{space.own}")
        self.sha = sha1(self.text.encode(), usedforsecurity=False).hexdigest()
