; Pushes 'R' twice, then goes on: allowed.
%include "driver.inc"
    begin
    reset
    reset
    config
    ready
    push_byte 'x'
    finish
