"""What the Lua scripts of a Redis target share: versions and where a row is; the text of JSON objects.

Versions are 20 bytes, big-endian: epoch 4, commit LSN 8, ordinal 8; the record of a row that is gone has one
byte more. They are compared as numbers of 32 bits, which Lua's doubles hold; `<` of two strings goes by the
server's locale.
"""

from __future__ import annotations

COMMON = """
local call = redis.call
local function older(a, b)
  if a == b then return false end
  local a1, a2, a3, a4, a5 = struct.unpack('>I4I4I4I4I4', a)
  local b1, b2, b3, b4, b5 = struct.unpack('>I4I4I4I4I4', b)
  if a1 ~= b1 then return a1 < b1 end
  if a2 ~= b2 then return a2 < b2 end
  if a3 ~= b3 then return a3 < b3 end
  if a4 ~= b4 then return a4 < b4 end
  return a5 < b5
end
local function now_us()
  local time = call('TIME')
  return time[1] * 1000000 + time[2]
end
-- A set of names from how they are packed; empty: none.
local function names_in(packed)
  local names = {}
  if packed ~= '' then
    for _, name in ipairs(cmsgpack.unpack(packed)) do names[name] = true end
  end
  return names
end
local TYPES = {hash = 'hash', json = 'string', zset = 'zset', set = 'set'}
-- The key and the member of a row, from the name of its record.
local function place_of(as, prefix, field)
  if as == 'hash' or as == 'json' then return prefix .. field, '' end
  local length, from = string.match(field, '^(%d+):()')
  return prefix .. string.sub(field, from, from + length - 1), string.sub(field, from + length)
end
local function remove(as, key, member)
  if call('TYPE', key).ok ~= TYPES[as] then return end
  if as == 'zset' then call('ZREM', key, member)
  elseif as == 'set' then call('SREM', key, member)
  else call('UNLINK', key) end
end
"""

# JSON text of ours, members in their order; numbers stay the digits they are.
JSON = """
local function string_end(text, from)
  local at = from + 1
  while true do
    local found = string.find(text, '["\\\\]', at)
    if not found then return nil end
    if string.byte(text, found) == 34 then return found end
    at = found + 2
  end
end
local function value_end(text, from)
  local first = string.sub(text, from, from)
  if first == '"' then return string_end(text, from) end
  if first == '{' or first == '[' then
    local depth, at = 0, from
    while at do
      local found = string.find(text, '["%[%]{}]', at)
      if not found then return nil end
      local char = string.sub(text, found, found)
      if char == '"' then
        at = string_end(text, found)
        at = at and at + 1
      else
        depth = depth + ((char == '{' or char == '[') and 1 or -1)
        if depth == 0 then return found end
        at = found + 1
      end
    end
    return nil
  end
  local after = string.find(text, '[,}%]%s]', from)
  return after and after > from and after - 1 or nil
end
-- `base` with the members pairs[1], pairs[2], ...; nil when it is no JSON object. `nulls`: only members that
-- are null there are replaced.
local function merged(base, pairs, nulls)
  local given, used, parts = {}, {}, {}
  for i = 1, #pairs, 2 do given[pairs[i]] = pairs[i + 1] end
  local at = string.match(base, '^%s*{%s*()')
  if not at then return nil end
  while string.byte(base, at) == 34 do
    local stop = string_end(base, at)
    if not stop then return nil end
    local name = string.sub(base, at, stop)
    at = string.match(base, '^%s*:%s*()', stop + 1)
    if not at then return nil end
    stop = value_end(base, at)
    if not stop then return nil end
    local value = string.sub(base, at, stop)
    if not nulls or value == 'null' then value = given[name] or value end
    parts[#parts + 1] = name .. ':' .. value
    used[name] = true
    at = string.match(base, '^%s*,%s*()', stop + 1)
    if not at then
      at = string.match(base, '^%s*()}', stop + 1)
      if not at then return nil end
    end
  end
  if not string.match(base, '^}%s*$', at) then return nil end
  for i = 1, #pairs, 2 do
    if not used[pairs[i]] then parts[#parts + 1] = pairs[i] .. ':' .. pairs[i + 1] end
  end
  return '{' .. table.concat(parts, ',') .. '}'
end
"""
